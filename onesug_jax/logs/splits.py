"""Which rows are train, dev and test: as their files are named, or by time; and their files."""

from __future__ import annotations

import os
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.database import named
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LOG_SCHEMA
from onesug_jax.logs.staging import SPLIT, Staging
from onesug_jax.logs.times import DAY_MS, day

SPLITS = ("train", "dev", "test")
BY_TIME = -1
ROW_GROUP = 65_536


@dataclass(frozen=True)
class Written:
    """One split's file: its rows, the times of the first and the last."""

    rows: int
    first: int
    last: int


def pool_of(database: duckdb.DuckDBPyConnection, dev_days: float) -> int | None:
    """The rows of view `log` that are split by time: BY_TIME, 0 (train) or none."""
    there = {one for (one,) in database.execute(f"SELECT DISTINCT {SPLIT} FROM log").fetchall()}
    if BY_TIME in there:
        return BY_TIME
    return 0 if 0 in there and 1 not in there and dev_days > 0 else None


def split_rule(
    database: duckdb.DuckDBPyConnection,
    pool: int | None,
    log: str,
    dev_days: float,
    test_days: float,
) -> tuple[str, str]:
    """The SQL that gives each row's split (0, 1, 2), and how to call it to a reader.

    Raises:
      UserError: nothing would be left to train on.
    """
    if pool is None:
        return SPLIT, "as named"
    [(first, last, tested)] = database.execute(
        f"SELECT min(timestamp_ms) FILTER ({SPLIT} = {pool}), "
        f"max(timestamp_ms) FILTER ({SPLIT} = {pool}), bool_or({SPLIT} = 2) FROM log"
    ).fetchall()
    test_days = 0.0 if tested and pool != BY_TIME else test_days
    test_from = last - round(test_days * DAY_MS)
    dev_from = test_from - round(dev_days * DAY_MS)
    if first > dev_from:
        span = (last - first) / DAY_MS
        raise UserError(
            f"log {log!r} spans {span:.3g} days ({day(first)} to {day(last)}), so "
            f"ingest.dev_days={dev_days:g} and ingest.test_days={test_days:g} leave nothing to "
            f"train on. Lower them."
        )
    rule = (
        f"CASE WHEN {SPLIT} <> {pool} THEN {SPLIT} WHEN timestamp_ms > {test_from} THEN 2 "
        f"WHEN timestamp_ms > {dev_from} THEN 1 ELSE 0 END"
    )
    label = "by time" if pool == BY_TIME else "as named, dev split off train by time"
    if dev_days:
        label += f"; dev from {day(dev_from)}"
    if test_days:
        label += f"; test from {day(test_from)}"
    return rule, label


def schema_of(staging: Staging, profile: list[str]) -> pa.Schema:
    """The columns of the files: the schema's, those optional ones that some part has, profile."""
    there = {name for part in staging.parts for name in pq.read_schema(part).names}
    optional = {HISTORY: pa.list_(pa.string()), HISTORY_MINUTES: pa.list_(pa.float64())}
    fields = [*LOG_SCHEMA, *(pa.field(n, kind) for n, kind in optional.items() if n in there)]
    return pa.schema([*fields, *((name, pa.string()) for name in profile)])


def write_splits(
    database: duckdb.DuckDBPyConnection, rule: str, schema: pa.Schema, folder: str
) -> dict[str, Written]:
    """Files folder/{train,dev,test}.parquet of view `log`, in order of time; none without rows."""
    fixed = {*LOG_SCHEMA.names, HISTORY, HISTORY_MINUTES}
    chosen = ", ".join(
        named(name) if name in fixed else f"coalesce({named(name)}, '') AS {named(name)}"
        for name in schema.names
    )
    written: dict[str, Written] = {}
    for place, split in enumerate(SPLITS):
        rows = database.sql(
            f"SELECT {chosen} FROM log WHERE ({rule}) = {place} ORDER BY timestamp_ms, request_id"
        ).to_arrow_reader(ROW_GROUP)
        path = os.path.join(folder, f"{split}.parquet")
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in rows:
                if not batch.num_rows:
                    continue
                writer.write_batch(batch.cast(schema))
                stamps = batch.column("timestamp_ms")
                before = written.get(split, Written(0, stamps[0].as_py(), 0))
                written[split] = Written(
                    before.rows + batch.num_rows, before.first, stamps[-1].as_py()
                )
        if split not in written:
            os.remove(path)
    return written
