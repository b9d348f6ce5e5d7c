"""AmazonQAC (395 M searches with their typed prefixes; CDLA-Permissive-2.0) -> the schema."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onesug_jax.errors import UserError
from onesug_jax.logs import columns as to
from onesug_jax.logs.adapter import Adapter, ChunkReader, Rows, draw
from onesug_jax.logs.asof.config import MINUTE_MS
from onesug_jax.logs.readers import Chunk, Source
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES


@dataclass
class AmazonQAC(Adapter):
    """AmazonQAC: train files (all typed prefixes of a search), test files (one, and past terms).

    Rules: user_id is session_id, as the data names no user. request_id is "session_id/query_id".
    The time is that of the first prefix typed (train) or of the prefix (test), or search_time where
    that is missing. `prefixes="one"` draws one prefix by (seed, session_id, query_id), "last" takes
    the last, and "all" makes a row of each, with ".0", ".1" ... appended to the request_id. In test
    rows, `history` has the past_search_terms earlier than the prefix in order of time, and
    `history_minutes` their ages. The data has no shown list, click, item or order: every row is
    a CLICK. `popularity` is left out, as it counts the searched query.
    """

    prefixes: str = "one"
    seed: int = 0
    name = "amazonqac"
    kinds = {"query_id": "id", "session_id": "id", "final_search_term": "text"}
    _train = {"prefixes": "texts", "first_prefix_typed_time": "time", "search_time": "time"}
    _test = {
        "prefix": "text",
        "prefix_typed_time": "time",
        "search_time": "time",
        "past_search_terms": "any",
    }

    def __post_init__(self):
        if self.prefixes not in ("one", "last", "all"):
            raise UserError(
                f"ingest.prefixes={self.prefixes!r}: expected 'one', 'last' or 'all' (which of "
                "AmazonQAC's typed prefixes become rows)."
            )

    def needs(self, source: Source) -> dict[str, str]:
        """The columns of the train files, or of the test files where the file has `prefix`."""
        is_test = "prefix" in source.columns and "prefixes" not in source.columns
        return {**self.kinds, **(self._test if is_test else self._train)}

    def convert(self, chunk: Chunk) -> Rows:
        """One row per prefix chosen."""
        read = ChunkReader(chunk)
        session = read(to.text, "session_id")
        query_id = read(to.text, "query_id")
        joined = zip(session.to_pylist(), query_id.to_pylist(), strict=True)
        request = [None if s is None or q is None else f"{s}/{q}" for s, q in joined]
        is_test = "prefixes" not in chunk.columns
        typed = read(to.times, "prefix_typed_time" if is_test else "first_prefix_typed_time")
        searched = read(to.times, "search_time")
        table = {
            "request_id": pa.array(request, pa.string()),
            "user_id": session,
            "session_id": session,
            "timestamp_ms": pc.coalesce(typed, searched),
            "query": read(to.text, "final_search_term"),
        }
        if is_test:
            table["prefix"] = read(to.text, "prefix")
            table |= self._past(read, table["timestamp_ms"])
            return read.rows(table)
        choices = read(to.text_lists, "prefixes").to_pylist()
        for row, typed_prefixes in enumerate(choices):
            if not typed_prefixes:
                read.faults.setdefault(row, "prefixes is empty")
        if self.prefixes == "all":
            return self._all(read, table, choices, request)
        chosen: list[str | None] = []
        for row, typed_prefixes in enumerate(choices):
            place = -1
            if typed_prefixes and self.prefixes == "one":
                place = draw(self.seed, str(request[row]), len(typed_prefixes))
            chosen.append(typed_prefixes[place] if typed_prefixes else None)
        table["prefix"] = pa.array(chosen, pa.string())
        return read.rows(table)

    def _all(self, read: ChunkReader, table: dict, choices: list, request: list) -> Rows:
        """One row for each typed prefix."""
        searches = read.rows(table)
        typed = [choices[row] for row in searches.origin.tolist()]
        search_of = np.repeat(np.arange(len(typed)), [len(prefixes) for prefixes in typed])
        rows = searches.table.take(pa.array(search_of))
        names = [
            None if request[row] is None else f"{request[row]}.{place}"
            for row, prefixes in zip(searches.origin.tolist(), typed, strict=True)
            for place in range(len(prefixes))
        ]
        flat = [prefix for prefixes in typed for prefix in prefixes]
        for name, values in (("request_id", names), ("prefix", flat)):
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(column, name, pa.array(values, pa.string()))
        return Rows(rows, searches.origin[search_of], read.faults)

    def _past(self, read: ChunkReader, before: pa.Array) -> dict[str, pa.Array]:
        """Past terms, oldest first, and their ages; a pair is a list, a struct, or JSON of one."""
        name = "past_search_terms"
        column = read.chunk.columns[name]
        values = column.to_pylist() if isinstance(column, pa.Array) else column
        out: list[list[str] | None] = []
        ages: list[list[float] | None] = []
        for row, (value, limit) in enumerate(zip(values, before.to_pylist(), strict=True)):
            try:
                pairs = [
                    list(pair.values()) if isinstance(pair, dict) else pair
                    for pair in to.parse_list(value, name) or []
                ]
                if not all(
                    isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
                    for pair in pairs
                ):
                    raise ValueError(f"{name} is not a list of [term, time]")
                timed = [(_moment(time, name), place) for place, (_, time) in enumerate(pairs)]
                dated = [(t, i) for t, i in timed if t is not None and (limit is None or t < limit)]
                out.append([pairs[place][0] for _, place in sorted(dated)])
                ages.append(limit and [(limit - time) / MINUTE_MS for time, _ in sorted(dated)])
            except ValueError as fault:
                read.faults.setdefault(row, str(fault))
                out.append(None)
                ages.append(None)
        values, faults = to.text_lists(out, name)
        read.faults.update(faults)
        return {HISTORY: values, HISTORY_MINUTES: pa.array(ages, to.NUMBERS)}


def _moment(value: object, name: str) -> int | None:
    if value is not None and not isinstance(value, str):
        value = value.isoformat() if hasattr(value, "isoformat") else repr(value)
    return to.parse_time(value, f"{name} time")
