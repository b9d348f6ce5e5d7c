"""Train, dev and test: the split of each row, by the name of its file or by time, and the files."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis import _

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import HOUR_MS
from onesug_jax.logs.engines import Engine
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LOG_SCHEMA, SPLITS
from onesug_jax.logs.staging import BY_TIME, SPLIT, Staged
from onesug_jax.logs.times import day


@dataclass(frozen=True)
class Hours:
    """The rows of one requested split by hour, in order of time; int64 [hours] each.

    Attributes:
      pool: the requested split, a place in SPLITS or BY_TIME.
      first, last: the first and the last millisecond of each hour with rows.
      rows: their numbers.
    """

    pool: int
    first: np.ndarray
    last: np.ndarray
    rows: np.ndarray

    def between(self, begin: int, end: int) -> Hours:
        """The hours that lie within these milliseconds, both included."""
        inside = (self.first >= begin) & (self.last <= end)
        return Hours(self.pool, self.first[inside], self.last[inside], self.rows[inside])


@dataclass(frozen=True)
class Rule:
    """The split of a row: as requested, or by time if it is of `pool`.

    Attributes:
      label: the rule in words, for the report.
      pool: the requested split that is divided by time; None: none is.
      begins: the times from which its rows are of a later split, by place in SPLITS, newest first.
    """

    label: str
    pool: int | None = None
    begins: dict[int, int] = dataclasses.field(default_factory=dict)

    def of(self, log: Any) -> Any:
        """The split of each row of an Ibis table, a place in SPLITS."""
        if self.pool is None:
            return log[SPLIT]
        later = [(log.timestamp_ms >= begin, place) for place, begin in self.begins.items()]
        by_time = ibis.cases(*later, else_=0) if later else ibis.literal(0)
        return (log[SPLIT] != self.pool).ifelse(log[SPLIT], by_time)


def requested_splits(engine: Engine, log: Any) -> set[int]:
    """The splits that the rows ask for: places in SPLITS, and BY_TIME."""
    return set(engine.fetch(log.select(SPLIT).distinct())[SPLIT].to_pylist())


def hours_of(engine: Engine, log: Any, splits: set[int], dev_share: float) -> Hours | None:
    """The rows that are split by time, by hour: those without a split, or those of train if there
    is no dev. None if no row is.
    """
    train = 0 in splits and 1 not in splits and dev_share > 0
    pool = BY_TIME if BY_TIME in splits else 0
    if pool != BY_TIME and not train:
        return None
    hour = (_.timestamp_ms // HOUR_MS).name("hour")
    table = engine.fetch(
        log.filter(_[SPLIT] == pool)
        .group_by(hour)
        .aggregate(first=_.timestamp_ms.min(), last=_.timestamp_ms.max(), rows=_.count())
        .order_by("hour")
    )
    return Hours(pool, *(table[name].to_numpy() for name in ("first", "last", "rows")))


def split_rule(
    engine: Engine,
    log: Any,
    name: str,
    splits: set[int],
    hours: Hours | None,
    dev_share: float,
    test_share: float,
) -> Rule:
    """The rule of the log called `name` from its `requested_splits` and `hours_of`.

    Raises:
      UserError: all rows have one time, so that a split by time leaves none to train on.
    """
    if hours is None:
        return Rule("as named")
    if 2 in splits and hours.pool != BY_TIME:
        test_share = 0.0
    rows, oldest = int(hours.rows.sum()), int(hours.first[0])
    begins: dict[int, int] = {}
    label, newer = "", 0
    for place, share in ((2, test_share), (1, dev_share)):
        if not share:
            continue
        newer += max(1, round(share * rows))
        begin = _time_at(engine, log, hours, max(rows - newer, 0))
        if begin == oldest:
            pool = log.filter(_[SPLIT] == hours.pool, _.timestamp_ms > oldest)
            begin = engine.fetch(pool.aggregate(begin=_.timestamp_ms.min()))["begin"][0].as_py()
        if begin is None:
            raise UserError(
                f"log {name!r}: its {rows} rows all have the time {day(oldest)}, so a split by "
                "time leaves nothing to train on. Name its files train.* and dev.*, or set "
                "--gin.ingest.dev_share=0 --gin.ingest.test_share=0."
            )
        begins[place] = begin
        label = f"; {SPLITS[place]} from {day(begin)}" + label
    by_time = hours.pool == BY_TIME
    label = ("by time" if by_time else "as named, dev split off train by time") + label
    return Rule(label, hours.pool, begins)


def _time_at(engine: Engine, log: Any, hours: Hours, place: int) -> int:
    """The time of the row at `place` in order of time."""
    before = np.cumsum(hours.rows)
    hour = int(np.searchsorted(before, place, side="right"))
    first, last = int(hours.first[hour]), int(hours.last[hour])
    place -= int(before[hour] - hours.rows[hour])
    within = log.filter(_[SPLIT] == hours.pool, _.timestamp_ms.between(first, last))
    times = engine.fetch(within.group_by("timestamp_ms").aggregate(n=_.count()))
    times = times.sort_by("timestamp_ms")
    at = int(np.searchsorted(np.cumsum(times["n"].to_numpy()), place, side="right"))
    return times["timestamp_ms"][at].as_py()


def schema_of(staged: Staged, profile: list[str]) -> pa.Schema:
    """The columns of the files: the schema's, the optional ones that a part has, the profile's."""
    names = {name for part in staged.parts for name in pq.read_schema(part).names}
    optional = {HISTORY: pa.list_(pa.string()), HISTORY_MINUTES: pa.list_(pa.float64())}
    fields = [*LOG_SCHEMA, *(pa.field(n, kind) for n, kind in optional.items() if n in names)]
    return pa.schema([*fields, *((name, pa.string()) for name in profile)])


@dataclass(frozen=True)
class Written:
    """The file of one split: its number of rows, the times of the first and the last."""

    rows: int
    first: int
    last: int


def write_splits(
    engine: Engine, log: Any, rule: Rule, schema: pa.Schema, folder: str
) -> dict[str, Written]:
    """Write folder/{train,dev,test}.parquet from a table, in order of time; no empty files."""
    profile = set(schema.names) - {*LOG_SCHEMA.names, HISTORY, HISTORY_MINUTES}
    filled = log.mutate(**{name: log[name].fill_null("") for name in profile})
    written: dict[str, Written] = {}
    for place, split in enumerate(SPLITS):
        path = os.path.join(folder, f"{split}.parquet")
        rows = filled.filter(rule.of(filled) == place)
        if engine.write(rows, [_.timestamp_ms, _.request_id], schema, path):
            written[split] = _described(path)
        else:
            os.remove(path)
    return written


def _described(path: str) -> Written:
    """The rows and times of a file in order of time, by its statistics."""
    file = pq.read_metadata(path)
    column = file.schema.names.index("timestamp_ms")
    groups = [file.row_group(group).column(column) for group in range(file.num_row_groups)]
    return Written(file.num_rows, groups[0].statistics.min, groups[-1].statistics.max)
