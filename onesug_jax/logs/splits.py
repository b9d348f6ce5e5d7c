"""Train, dev and test: the split of each row, by the name of its file or by time, and the files."""

from __future__ import annotations

import os
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.database import named
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LOG_SCHEMA, SPLITS
from onesug_jax.logs.staging import SPLIT, Staging
from onesug_jax.logs.times import day

BY_TIME = -1
ROW_GROUP = 65_536


@dataclass(frozen=True)
class Written:
    """The file of one split: its number of rows, the times of the first and the last."""

    rows: int
    first: int
    last: int


def pool_of(database: duckdb.DuckDBPyConnection, dev_share: float) -> int | None:
    """The rows of view `log` that are split by time: BY_TIME, 0 (train) or none."""
    splits = {one for (one,) in database.execute(f"SELECT DISTINCT {SPLIT} FROM log").fetchall()}
    if BY_TIME in splits:
        return BY_TIME
    return 0 if 0 in splits and 1 not in splits and dev_share > 0 else None


def split_rule(
    database: duckdb.DuckDBPyConnection,
    pool: int | None,
    log: str,
    dev_share: float,
    test_share: float,
) -> tuple[str, str]:
    """The SQL expression of a row's split (0, 1, 2), and a description of it for the report.

    Raises:
      UserError: all rows have one time, so that a split by time leaves none to train on.
    """
    if pool is None:
        return SPLIT, "as named"
    by_time = f"SELECT timestamp_ms FROM log WHERE {SPLIT} = {pool} ORDER BY timestamp_ms"
    [(rows, oldest, has_test)] = database.execute(
        f"SELECT count(*) FILTER ({SPLIT} = {pool}), min(timestamp_ms) FILTER ({SPLIT} = {pool}), "
        f"bool_or({SPLIT} = 2) FROM log"
    ).fetchall()
    test_share = 0.0 if has_test and pool != BY_TIME else test_share
    cases, label, newer = "", "", 0
    for place, share in ((2, test_share), (1, dev_share)):
        if not share:
            continue
        newer += max(1, round(share * rows))
        [(begin,)] = database.execute(
            f"SELECT min(timestamp_ms) FROM ({by_time} OFFSET {max(rows - newer, 0)}) "
            f"WHERE timestamp_ms > {oldest}"
        ).fetchall()
        if begin is None:
            raise UserError(
                f"log {log!r}: its {rows} rows all have the time {day(oldest)}, so a split by time "
                "leaves nothing to train on. Name its files train.* and dev.*, or set "
                "--gin.ingest.dev_share=0 --gin.ingest.test_share=0."
            )
        cases += f" WHEN timestamp_ms >= {begin} THEN {place}"
        label = f"; {SPLITS[place]} from {day(begin)}" + label
    label = ("by time" if pool == BY_TIME else "as named, dev split off train by time") + label
    return f"CASE WHEN {SPLIT} <> {pool} THEN {SPLIT}{cases} ELSE 0 END", label


def schema_of(staging: Staging, profile: list[str]) -> pa.Schema:
    """The columns of the files: the schema's, the optional ones that a part has, the profile's."""
    names = {name for part in staging.parts for name in pq.read_schema(part).names}
    optional = {HISTORY: pa.list_(pa.string()), HISTORY_MINUTES: pa.list_(pa.float64())}
    fields = [*LOG_SCHEMA, *(pa.field(n, kind) for n, kind in optional.items() if n in names)]
    return pa.schema([*fields, *((name, pa.string()) for name in profile)])


def write_splits(
    database: duckdb.DuckDBPyConnection, rule: str, schema: pa.Schema, folder: str
) -> dict[str, Written]:
    """Write folder/{train,dev,test}.parquet from view `log`, in order of time; no empty files."""
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
