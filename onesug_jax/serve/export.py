"""Writes stored events as a log in the schema, for `update`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence

from onesug_jax.files import atomic_path
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LOG_SCHEMA

LISTS = ("shown", "clicked_items", "ordered_items")  # JSON columns, besides the profile
OWN = (HISTORY, HISTORY_MINUTES)  # JSON columns of the client's own history; null without one
_ROW_GROUP = 8192  # events


def export(
    connection: sqlite3.Connection,
    path: str,
    profile: Sequence[str],
    since_ms: int,
    untrusted: bool,
) -> int:
    """See `feedback.FeedbackStore.export`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where, count = f"WHERE timestamp_ms >= ? AND trusted >= {0 if untrusted else 1}", 0
    connection.execute("BEGIN")  # a consistent snapshot of the file
    try:
        if not connection.execute(f"SELECT 1 FROM events {where}", (since_ms,)).fetchone():
            return 0
        names = connection.execute(
            f"SELECT DISTINCT key FROM events, json_each(events.profile) {where} ORDER BY key",
            (since_ms,),
        ).fetchall()
        columns = list(dict.fromkeys([*profile, *(name for (name,) in names)]))
        schema = pa.schema(
            [
                *LOG_SCHEMA,
                (HISTORY, pa.list_(pa.string())),
                (HISTORY_MINUTES, pa.list_(pa.float64())),
                *((name, pa.string()) for name in columns),
            ]
        )
        rows = connection.execute(
            f"SELECT * FROM events {where} ORDER BY timestamp_ms, request_id", (since_ms,)
        )
        with atomic_path(path) as new, pq.ParquetWriter(new, schema) as writer:
            for batch in _batches(rows):
                for row in batch:
                    row.update(dict.fromkeys(columns, "") | row["profile"])
                writer.write_table(pa.Table.from_pylist(batch, schema))
                count += len(batch)
    finally:
        connection.execute("COMMIT")
    return count


def _batches(rows: sqlite3.Cursor) -> Iterator[list[dict]]:
    """Yields the rows with decoded JSON columns, a row group at a time."""
    names = [column[0] for column in rows.description]
    while fetched := rows.fetchmany(_ROW_GROUP):
        batch = [dict(zip(names, row, strict=True)) for row in fetched]
        for row in batch:
            for name in (*LISTS, "profile"):
                row[name] = json.loads(row[name])
            for name in OWN:
                row[name] = None if row[name] is None else json.loads(row[name])
        yield batch
