"""KuaiSearch (Kuaishou search sessions with clicked and purchased items) -> rows of the schema."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from onesug_jax.logs import columns as to
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows, draw
from onesug_jax.logs.readers import Chunk, Source, read_chunks
from onesug_jax.logs.schema import normalise_query


@dataclass
class KuaiSearch(Adapter):
    """KuaiSearch's recall sessions, with the users' table if the folder has one.

    Rules: the data has no typed prefixes, so one is derived from the normalised query. Its length
    is drawn uniformly by (seed, file, row), from 1 to the length of the query, at most
    `max_prefix`. The time is time_index read as seconds since 1970 (an order, not true dates).
    Purchased and clicked items become ordered_items and clicked_items. The impressions are items,
    not suggestions, so `shown` is empty. The `split` column of the file gives the splits. Columns
    of users*.jsonl become profile columns.
    """

    seed: int = 0
    max_prefix: int = 64
    name = "kuaisearch"
    dated = False
    kinds = {
        "user_id": "id",
        "session_id": "id",
        "query": "text",
        "time_index": "number",
        "clicked_item_ids": "ids",
        "purchased_item_ids": "ids",
    }
    _users: dict[str, list[str]] = field(default_factory=dict)
    _profile: list[str] = field(default_factory=list)

    def is_side(self, columns: Collection[str]) -> bool:
        """Whether these are users (user_id without a query) or items (item_id)."""
        return "query" not in columns and ("user_id" in columns or "item_id" in columns)

    def load_sides(self, sources: Sequence[Source]) -> int:
        """Hold the columns of users in memory; returns the number of unreadable lines."""
        unread = 0
        for source in sources:
            if "user_id" not in source.columns:
                continue
            for name in source.columns:
                if name not in ("user_id", *self._profile):
                    self._profile.append(name)
            for chunk in read_chunks(source):
                unread += len(chunk.bad)
                count = len(chunk.rows)
                users, _ = to.text(chunk.columns.get("user_id", [None] * count), "user_id")
                values = [
                    to.profile_text(chunk.columns.get(name, [None] * count), name)[0].to_pylist()
                    for name in self._profile
                ]
                rows = zip(*values, strict=True) if values else [()] * count
                self._users.update(zip(users.to_pylist(), map(list, rows), strict=True))
        return unread

    def needs(self, source: Source) -> dict[str, str]:
        """The recall columns, and `split` if the file has it."""
        return {**self.kinds, **({"split": "text"} if "split" in source.columns else {})}

    def convert(self, chunk: Chunk) -> Rows:
        """One row per session."""
        read = ChunkReader(chunk)
        user = read(to.text, "user_id")
        query = read(to.text, "query")
        seconds = read(to.whole_numbers, "time_index").to_pylist()
        names = [f"kuai-{chunk.source.index:03d}-{row:09d}" for row in chunk.rows]
        prefixes = [
            None if text is None else self._prefix(text, name)
            for text, name in zip(query.to_pylist(), names, strict=True)
        ]
        splits = None
        if "split" in chunk.columns:
            splits = np.zeros(read.count, np.int8)
            numbers = {"train": 0, "dev": 1, "val": 1, "valid": 1, "validation": 1, "test": 2}
            for row, split in enumerate(read(to.text, "split").to_pylist()):
                if split in numbers:
                    splits[row] = numbers[split]
                else:
                    read.faults.setdefault(row, "split is none of train, dev, test")
        table = {
            "request_id": pa.array(names, pa.string()),
            "user_id": user,
            "session_id": read(to.text, "session_id"),
            "timestamp_ms": pa.array([_seconds(value) for value in seconds], pa.int64()),
            "prefix": pa.array(prefixes, pa.string()),
            "query": query,
            "clicked_items": read(to.text_lists, "clicked_item_ids"),
            "ordered_items": read(to.text_lists, "purchased_item_ids"),
        }
        unknown = [None] * len(self._profile)
        profiles = [self._users.get(name, unknown) for name in user.to_pylist()]
        for place, name in enumerate(self._profile):
            values = [profile[place] if place < len(profile) else None for profile in profiles]
            table[name] = pa.array(values, pa.string())
        return read.rows(table, splits)

    def _prefix(self, query: str, name: str) -> str:
        query = normalise_query(query)
        longest = max(1, min(len(query), self.max_prefix))
        return query[: 1 + draw(self.seed, name, longest)]


def _seconds(value: int | None) -> int | None:
    return None if value is None or abs(value) > 2**52 else value * 1000
