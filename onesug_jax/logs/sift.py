"""Rows set aside after all are read: repeated request ids, and times far away from all others."""

from __future__ import annotations

import json
from typing import Any

from ibis import _

from onesug_jax.logs.engines import Engine
from onesug_jax.logs.pairs import first
from onesug_jax.logs.schema import UNTIMELY
from onesug_jax.logs.splits import Hours
from onesug_jax.logs.staging import FILE, ROW, SPLIT, SetAside, Staged
from onesug_jax.logs.times import day, main_span

DUPLICATE = "request_id seen before"
FAR_AWAY = f"{UNTIMELY} far away from all other rows"

_KEY = ["request_id", FILE, ROW]


class Sift:
    """The rows of a log, less those set aside; `log` is an Ibis table.

    Args:
      engine: the engine that holds the table.
      log: the parts that were read, as one table.
      staged: their counts. aside: the writer of the rows set aside.
      paths: the path of each file number.
    """

    def __init__(
        self, engine: Engine, log: Any, staged: Staged, aside: SetAside, paths: dict[int, str]
    ):
        self.log = log
        self._engine, self._staged, self._aside, self._paths = engine, staged, aside, paths

    def drop_repeats(self) -> None:
        """Retain the first row of each request_id."""
        ids = self.log.group_by("request_id").aggregate(n=_.count()).filter(_.n > 1)
        rows = self.log.semi_join(ids, "request_id")
        earliest = first(rows, 1, of="request_id", by=[_[FILE], _[ROW]])
        self._set_aside("repeated_rows", rows.anti_join(earliest, _KEY), DUPLICATE)

    def drop_far_away(self, hours: Hours, *, only_later: bool) -> Hours:
        """Set the rows of split `hours.pool` aside that are outside of `times.main_span`.

        `only_later`: only those after it. The log of one day may have an order of last month's
        search.

        Returns:
          the hours that are left.
        """
        begin, end = main_span(hours.first, hours.last, hours.rows)
        if only_later:
            begin = int(hours.first[0])
        inside = hours.between(begin, end)
        if len(inside.rows) < len(hours.rows):
            reason = f"{FAR_AWAY} ({day(begin)} .. {day(end)})"
            far = self.log.filter(_[SPLIT] == hours.pool, ~_.timestamp_ms.between(begin, end))
            self._set_aside("far_away_rows", far, reason)
        return inside

    def _set_aside(self, name: str, rows: Any, reason: str) -> None:
        columns = [*_KEY, "timestamp_ms", "prefix", "query"]
        stored = self._engine.keep(name, rows.select(columns))
        found = False
        for batch in self._engine.batches(stored, [_[FILE], _[ROW]], columns):
            for request_id, file, row, time, prefix, query in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            ):
                values = {"request_id": request_id, "timestamp_ms": time, "prefix": prefix}
                raw = json.dumps({**values, "query": query}, ensure_ascii=False)
                self._staged.count(self._paths[file], -1)
                self._aside(self._paths[file], row, reason, raw)
                found = True
        if found:
            self.log = self.log.anti_join(stored, _KEY)
