"""The mined tables: their columns, and functions to read them (PAPER.md section 2, step 1).

Five tables, one Parquet file each, and a report of rows:

  queries       query, count, users, clicks, item_clicks, orders, last_ms; by query
  prefixes      prefix, count, users; by prefix
  prefix_query  prefix, query, count, users, score; by prefix, then best first
  query_query   query, other, source, swing, itemcf, users; by query, source ("item" before
                "visitor"), then best first
  pools         prefix, query, rank, count; by prefix, then rank

`mining` defines the numbers and computes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import open_parquet, require_files

_STRING, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

TABLES = {
    "queries": pa.schema(
        [("query", _STRING), ("count", _INT), ("users", _INT), ("clicks", _INT)]
        + [("item_clicks", _INT), ("orders", _INT), ("last_ms", _INT)]
    ),
    "prefixes": pa.schema([("prefix", _STRING), ("count", _INT), ("users", _INT)]),
    "prefix_query": pa.schema(
        [("prefix", _STRING), ("query", _STRING), ("count", _INT), ("users", _INT)]
        + [("score", _FLOAT)]
    ),
    "query_query": pa.schema(
        [("query", _STRING), ("other", _STRING), ("source", _STRING), ("swing", _FLOAT)]
        + [("itemcf", _FLOAT), ("users", _INT)]
    ),
    "pools": pa.schema([("prefix", _STRING), ("query", _STRING), ("rank", _INT), ("count", _INT)]),
}
REPORT = "report.json"
_BLOCK = 1 << 20  # rows


@dataclasses.dataclass(frozen=True)
class MiningReport:
    """Numbers of rows of the log and of every table, and of what the thresholds left out.

    Attributes:
      rows, visitors: of the log.
      repeats_left_out: rows beyond `max_repeats` of one visitor, query and day; in no other count.
      queries, prefixes, prefix_query, query_query_visitor, query_query_item, pools: rows of tables.
      queries_left_out, prefixes_left_out: those of fewer than `min_users` visitors.
      query_rows_left_out, prefix_rows_left_out: rows of the log with such a query or prefix.
    """

    rows: int
    visitors: int
    repeats_left_out: int
    queries: int
    queries_left_out: int
    query_rows_left_out: int
    prefixes: int
    prefixes_left_out: int
    prefix_rows_left_out: int
    prefix_query: int
    query_query_visitor: int
    query_query_item: int
    pools: int


def read_table(out: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One of `TABLES` with its types; all columns, or these.

    Raises:
      UserError: its file is missing or damaged, or lacks a column.
    """
    schema = pa.schema([TABLES[name].field(column) for column in columns or TABLES[name].names])
    with _reading(out, name) as path:
        return pq.read_table(path, columns=schema.names).cast(schema)


def read_blocks(out: str, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a mined table in blocks of a million rows; raises as `read_table`."""
    with _reading(out, name) as path, open_parquet(path) as file:
        yield from file.iter_batches(_BLOCK, columns=list(columns))


@contextlib.contextmanager
def _reading(out: str, name: str) -> Iterator[str]:
    """The path of a table; errors while it is read become UserError."""
    path = os.path.join(out, file_of(name))
    require_files([path], "a mined table", "run mine first.")
    try:
        yield path
    except (ValueError, OSError) as error:  # the errors of pyarrow are subclasses
        check_refused(path, error)
        raise UserError(
            f"{path}: expected the columns {', '.join(TABLES[name].names)}; reading them failed: "
            f"{error}. Run mine again."
        ) from None


def file_of(table: str) -> str:
    """The name of a table's file."""
    return f"{table}.parquet"
