"""The OneSug authors' sample rows: as a log, and as the preference records that they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from onesug_jax.errors import UserError
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows
from onesug_jax.logs.find import sniff
from onesug_jax.logs.readers import ONESUG_COLUMNS, Chunk, Source, read_chunks
from onesug_jax.logs.schema import HISTORY, Level

LISTS = pa.list_(pa.string())
HOUR_MS = 3_600_000
UNKNOWN_ITEM = "unknown"

# The paper's base reward of each positive level (section 4): the sample gives no behaviour.
POSITIVE_REWARDS = {Level.CLICK: 1.0, Level.ITEM_CLICK: 1.5, Level.ORDER: 2.0}


@dataclass(frozen=True)
class PreferenceRecord:
    """One row of the OneSug authors' sample: a request, its chosen query and the rejected ones."""

    prefix: str
    history: tuple[str, ...]  # newest first
    related: tuple[str, ...]
    chosen: str
    rejected: tuple[str, ...]
    chosen_reward: float
    rejected_reward: float


@dataclass
class OneSugSample(Adapter):
    """The OneSug authors' seven tab-separated columns without a header.

    Rules: items inside a field are comma-joined. searched_query is taken as newest first, so that
    the encoder sees the authors' order. `query` is the chosen one; its level is the positive level
    whose base reward (1.0, 1.5, 2.0) lies nearest to pos_score, expressed by one item "unknown"
    among the clicked (ITEM_CLICK) or clicked and ordered items (ORDER). Users and times are not
    given: user_id is "", rows follow each other by an hour. The rejected queries and the scores are
    not part of a log: `read_onesug_sample` returns them.
    """

    name = "onesug"
    dated = False
    kinds = dict.fromkeys(ONESUG_COLUMNS, "text")

    def check(self, source: Source) -> None:
        """Only files of seven columns without a header, the last two scores, are of this kind."""
        if source.kind != "onesug":
            raise UserError(
                f"{source.path}: adapter 'onesug' expects seven tab-separated columns without a "
                f"header ({', '.join(ONESUG_COLUMNS)}), the last two numbers; "
                "the first line differs."
            )

    def convert(self, chunk: Chunk) -> Rows:
        """One row per line."""
        read = ChunkReader(chunk)
        records = []
        for row in range(read.count):
            try:
                records.append(_record(chunk, row))
            except ValueError as fault:
                read.faults[row] = str(fault)
                records.append(PreferenceRecord("", (), (), "", (), 0.0, 0.0))
        level = [
            min(POSITIVE_REWARDS, key=lambda one: abs(POSITIVE_REWARDS[one] - r.chosen_reward))
            for r in records
        ]
        where = chunk.source.index
        base = where * 1_000_000  # files follow each other; hours, as the rows inside one
        table = {
            "request_id": [f"onesug-{where:03d}-{row:09d}" for row in chunk.rows],
            "prefix": [r.prefix for r in records],
            "query": [r.chosen for r in records],
        }
        table = {name: pa.array(values, pa.string()) for name, values in table.items()}
        table["timestamp_ms"] = pa.array([HOUR_MS * (base + row) for row in chunk.rows], pa.int64())
        items = {
            "clicked_items": [[] if one == Level.CLICK else [UNKNOWN_ITEM] for one in level],
            "ordered_items": [[UNKNOWN_ITEM] if one == Level.ORDER else [] for one in level],
            HISTORY: [r.history[::-1] for r in records],
        }
        table.update({name: pa.array(values, LISTS) for name, values in items.items()})
        return read.rows(table)


def read_onesug_sample(path: str) -> list[PreferenceRecord]:
    """The rows of the authors' sample with rejected queries and rewards, text as it stands.

    Raises:
      UserError: a file of another kind, or a line that is not seven fields with two numbers.
    """
    source = sniff(path)
    OneSugSample().check(source)
    records = []
    for chunk in read_chunks(source):
        for line, reason, _ in chunk.bad:
            raise UserError(f"{path}, line {line}: {reason}.")
        for row, line in enumerate(chunk.rows):
            try:
                records.append(_record(chunk, row))
            except ValueError as fault:
                raise UserError(f"{path}, line {line}: {fault}.") from None
    return records


def _record(chunk: Chunk, row: int) -> PreferenceRecord:
    cells = [chunk.columns[name][row] for name in ONESUG_COLUMNS]
    scores = []
    for name, cell in zip(ONESUG_COLUMNS[-2:], cells[-2:], strict=True):
        try:
            score = float(cell)
        except ValueError:
            score = float("nan")
        if not np.isfinite(score):
            raise ValueError(f"{name} is not a number")
        scores.append(score)
    history, related, rejected = (
        tuple(part.strip() for part in cells[place].split(",") if part.strip())
        for place in (1, 2, 4)
    )
    return PreferenceRecord(cells[0], history, related, cells[3], rejected, *scores)
