"""Rows set aside after all are read: repeated request ids, and times far away from all others."""

from __future__ import annotations

import json

import duckdb

from onesug_jax.logs.asof.config import HOUR_MS
from onesug_jax.logs.database import files
from onesug_jax.logs.schema import UNTIMELY
from onesug_jax.logs.staging import FILE, ROW, SPLIT, Staging
from onesug_jax.logs.times import day, main_span

DUPLICATE = "request_id seen before"
FAR_AWAY = f"{UNTIMELY} far away from all other rows"

_KEY = f"request_id, {FILE}, {ROW}"


def drop_repeats(
    database: duckdb.DuckDBPyConnection, staging: Staging, paths: dict[int, str]
) -> None:
    """Create view `log` of the parts, with only the first row of each request_id."""
    database.execute(
        f"CREATE VIEW log AS FROM read_parquet({files(staging.parts)}, union_by_name=true)"
    )
    database.execute(
        "CREATE TABLE repeats AS SELECT request_id FROM log GROUP BY request_id HAVING count(*) > 1"
    )
    later = f"""SELECT * FROM log WHERE request_id IN (FROM repeats)
            QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY {FILE}, {ROW}) > 1"""
    _set_aside(database, staging, paths, "repeated_rows", later, DUPLICATE)


def drop_far_away(
    database: duckdb.DuckDBPyConnection,
    staging: Staging,
    paths: dict[int, str],
    pool: int,
    *,
    only_later: bool,
) -> None:
    """Remove the rows of split `pool` from view `log` that are outside of `times.main_span`.

    `only_later`: only those after it. The log of one day may have an order of last month's search.
    """
    hours = database.execute(
        f"SELECT min(timestamp_ms) AS first, max(timestamp_ms) AS last, count(*) AS rows "
        f"FROM log WHERE {SPLIT} = {pool} GROUP BY timestamp_ms // {HOUR_MS} ORDER BY first"
    ).fetchnumpy()
    if not len(hours["rows"]):
        return
    first, last = main_span(hours["first"], hours["last"], hours["rows"])
    if only_later:
        first = int(hours["first"][0])
    far = (
        f"SELECT * FROM log WHERE {SPLIT} = {pool} AND timestamp_ms NOT BETWEEN {first} AND {last}"
    )
    reason = f"{FAR_AWAY} ({day(first)} .. {day(last)})"
    _set_aside(database, staging, paths, "far_away_rows", far, reason)


def _set_aside(
    database: duckdb.DuckDBPyConnection,
    staging: Staging,
    paths: dict[int, str],
    name: str,
    query: str,
    reason: str,
) -> None:
    """Set the rows of `query` aside (table `name`), and replace view `log` by one without them."""
    database.execute(
        f"CREATE TABLE {name} AS SELECT {_KEY}, timestamp_ms, prefix, query FROM ({query})"
    )
    rows = database.execute(f"SELECT * FROM {name} ORDER BY {FILE}, {ROW}")
    any_removed = False
    while batch := rows.fetchmany(10_000):
        for request_id, file, row, time, prefix, text in batch:
            values = {"request_id": request_id, "timestamp_ms": time, "prefix": prefix}
            raw = json.dumps({**values, "query": text}, ensure_ascii=False)
            staging.take_back(paths[file])
            staging.put_aside(paths[file], row, reason, raw)
            any_removed = True
    if any_removed:
        database.execute(f"ALTER VIEW log RENAME TO log_with_{name}")
        database.execute(f"CREATE VIEW log AS FROM log_with_{name} ANTI JOIN {name} USING ({_KEY})")
