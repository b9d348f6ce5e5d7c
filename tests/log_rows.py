"""Rows of a log in the schema, for tests that set only a few columns."""

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.logs.schema import LOG_SCHEMA


def log_row(number: int, query: str, **fields) -> dict:
    """A search without clicks, typed by its first letter; `fields` replace values."""
    lists = {name: [] for name in ("shown", "clicked_items", "ordered_items")}
    row = dict.fromkeys(LOG_SCHEMA.names) | {"user_id": "", "session_id": ""} | lists
    row |= {"request_id": f"r{number:05d}", "timestamp_ms": number, "prefix": query[:1]}
    return {**row, "query": query, **fields}


def write_log(path, rows: list[dict], *extra) -> str:
    """Writes rows of the schema and `extra` columns (name, type); returns the path."""
    schema = pa.schema([*LOG_SCHEMA, *extra])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return str(path)
