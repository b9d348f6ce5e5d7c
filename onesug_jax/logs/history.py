"""A log's rows with the user's latest queries before each: the history H_u of the paper's input.

Only what came strictly earlier counts, over all the files of a log, so a dev row sees the train
rows of its user and never itself, its twin of the same millisecond, or anything later. The paper
uses the latest ten queries (section 1: more cost accuracy).

Events are sorted by user and time on disk with DuckDB; then one pass holds ten queries of a user.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.database import connect
from onesug_jax.logs.database import files as paths_in_sql
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, RECENT, RECENT_MINUTES, REQUIRED

BATCH = 65_536
_MINUTE_MS = 60_000
_LISTS = pa.list_(pa.string())
_MINUTES = pa.list_(pa.float32())
_ADDED = {RECENT: _LISTS, RECENT_MINUTES: _MINUTES}


def ages(minutes: Sequence[float], count: int) -> np.ndarray:
    """The ages of `count` queries in minutes, float64 `[count]`; zeros, just now, where `minutes`
    is empty.

    Raises:
      ValueError: there are ages, but fewer than queries.
    """
    if not len(minutes):
        return np.zeros(count)
    if len(minutes) < count:
        raise ValueError(f"{count} queries with {len(minutes)} ages")
    return np.asarray(minutes[:count], np.float64)


def with_history(
    log_files: Sequence[str],
    *,
    keep: str | None,
    history: int = 10,
    scratch: str | None = None,
    memory_limit: str = "2GB",
) -> pa.RecordBatchReader:
    """Rows of `keep` in file order, each with the user's latest distinct earlier queries.

    The added column `recent` (list<string>) is newest first, holds each query once, at its latest
    time, and at most `history` of them; `recent_minutes` (list<float>) is how long before the
    row each was searched. Queries of one user in the same millisecond are ordered by request_id. A
    row that brings its own `history` (oldest first, not null) has that in `recent` instead,
    reversed, each query once, and its `history_minutes`; rows without a user_id have empty lists.

    Args:
      log_files: all files of the log (of the schema, as `ingest` writes them) to take history from.
      keep: the one of them whose rows are returned; None returns all, file after file.
      history: the length n of the history.
      scratch: folder for temporary files; the system's own if None.
      memory_limit: what DuckDB may use for sorting before it goes to disk.

    Returns:
      a reader over record batches; with keep=None the columns are the union of all files'.

    Raises:
      UserError: a file is missing, is no Parquet file or lacks a column; `keep` is not among the
      files.
    """
    if history < 0:
        raise UserError(f"history={history}: expected 0 or more queries.")
    files = list(dict.fromkeys(os.fspath(path) for path in log_files))
    if keep is not None:
        same = [path for path in files if os.path.abspath(path) == os.path.abspath(keep)]
        if not same:
            raise UserError(f"history of {keep!r}: expected one of the log files {files}.")
        chosen = same[:1]
    else:
        chosen = files
    schemas = {path: _schema(path) for path in files}
    fields: dict[str, pa.Field] = {}
    for path in chosen:
        for field in schemas[path]:
            if field.name not in _ADDED:
                fields.setdefault(field.name, field)
    schema = pa.schema([*fields.values(), *_ADDED.items()])
    batches = _batches(files, chosen, schema, history, scratch, memory_limit)
    return pa.RecordBatchReader.from_batches(schema, batches)


def _schema(path: str) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: expected a Parquet file as ingest writes it; reading it failed: {error}"
        ) from None
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise UserError(
            f"{path}: column {missing[0]!r} is missing; found: {', '.join(schema.names)}. "
            "Run ingest on the log first."
        )
    return schema


def _batches(
    files: list[str],
    chosen: list[str],
    schema: pa.Schema,
    history: int,
    scratch: str | None,
    memory_limit: str,
) -> Iterator[pa.RecordBatch]:
    with tempfile.TemporaryDirectory(prefix="history-", dir=scratch) as folder:
        with connect(folder, memory_limit) as database:
            recent = os.path.join(folder, "recent.parquet")
            _write_recent(database, files, chosen, history, recent)
            names = ", ".join(_ADDED)
            added = _Added(
                database.sql(
                    f"SELECT {names} FROM read_parquet({paths_in_sql([recent])}) ORDER BY file, row"
                ).to_arrow_reader(BATCH)
            )
            for path in chosen:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(batch_size=BATCH):
                        yield _joined(batch, added.take(batch.num_rows), schema, history)


class _Added:
    """Takes the next n rows of the added columns from a stream of batches."""

    def __init__(self, batches: pa.RecordBatchReader):
        self._batches = iter(batches)
        self._left = pa.schema(_ADDED.items()).empty_table()

    def take(self, n: int) -> pa.Table:
        parts = [self._left]
        have = len(self._left)
        while have < n:
            parts.append(pa.Table.from_batches([next(self._batches)]).cast(self._left.schema))
            have += len(parts[-1])
        every = pa.concat_tables(parts)
        self._left = every.slice(n)
        return every.slice(0, n).combine_chunks()


def _write_recent(
    database: duckdb.DuckDBPyConnection,
    files: list[str],
    chosen: list[str],
    history: int,
    path: str,
) -> None:
    """Parquet of (file, row, and the added columns) for every row of the `chosen` files, in no
    useful order.
    """
    union = " UNION ALL ".join(
        "SELECT user_id, timestamp_ms, request_id, query, "
        f"{chosen.index(name) if name in chosen else -1} AS file, file_row_number AS row "
        f"FROM read_parquet({paths_in_sql([name])}, file_row_number=true)"
        for name in files
    )
    database.execute(f"CREATE VIEW events AS {union}")
    # Users of other files only would be sorted for nothing.
    events = database.sql(
        "SELECT user_id, timestamp_ms, query, file, row FROM events "
        "WHERE file >= 0 OR user_id IN (SELECT DISTINCT user_id FROM events WHERE file >= 0) "
        "ORDER BY user_id, timestamp_ms, request_id, file, row"
    ).to_arrow_reader(BATCH)
    schema = pa.schema([("file", pa.int32()), ("row", pa.int64()), *_ADDED.items()])
    walk = _Walk(history)
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        for batch in events:
            writer.write_table(pa.table(walk.step(batch), schema=schema))


class _Walk:
    """One pass over events in order of user and time, holding the latest queries of one user."""

    def __init__(self, history: int):
        self.history = history
        self.user: str | None = None
        self.time = 0
        self.latest: list[tuple[str, int]] = []  # with their times, newest first, before `time`
        self.now: list[str] = []  # queries at `time`, in order

    def step(self, batch: pa.RecordBatch) -> list[list]:
        """Columns file, row and the added ones of those events of a batch that are in a chosen
        file.
        """
        users, times, queries, files, rows = (column.to_pylist() for column in batch.columns)
        of_file, of_row, recent, minutes = [], [], [], []
        history = self.history
        for user, time, query, file, row in zip(users, times, queries, files, rows, strict=True):
            if user != self.user:
                self.user, self.time, self.latest, self.now = user, time, [], []
            elif time != self.time:
                for earlier in self.now:
                    # Ten distinct queries need no more than the ten that were used last.
                    rest = (past for past in self.latest if past[0] != earlier)
                    self.latest = [(earlier, self.time), *rest][:history]
                self.time, self.now = time, []
            if file >= 0:
                of_file.append(file)
                of_row.append(row)
                recent.append([query for query, _ in self.latest] if user else [])
                minutes.append([(time - at) / _MINUTE_MS for _, at in self.latest] if user else [])
            self.now.append(query)
        return [
            pa.array(of_file, pa.int32()),
            pa.array(of_row, pa.int64()),
            pa.array(recent, _LISTS),
            pa.array(minutes, _MINUTES),
        ]


def _joined(
    batch: pa.RecordBatch, added: pa.Table, schema: pa.Schema, history: int
) -> pa.RecordBatch:
    columns = {name: batch.column(name) for name in batch.schema.names}
    if HISTORY in columns and columns[HISTORY].null_count < batch.num_rows:
        own = columns[HISTORY].to_pylist()
        minutes_of: list = [None] * len(own)
        if HISTORY_MINUTES in columns:
            minutes_of = columns[HISTORY_MINUTES].to_pylist()
        recent, minutes = (added[name].to_pylist() for name in _ADDED)
        for row, given in enumerate(own):
            if given is not None:
                # Oldest first, so that of a query's several ages the last, the newest, stands.
                latest = dict(zip(given, ages(minutes_of[row] or (), len(given)), strict=True))
                order = list(dict.fromkeys(given[::-1]))[:history]
                recent[row], minutes[row] = order, [latest[query] for query in order]
        added = pa.table([recent, minutes], schema=pa.schema(_ADDED.items()))
    columns |= {name: added[name].combine_chunks() for name in _ADDED}
    count = batch.num_rows
    return pa.record_batch(
        [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type)
            for f in schema
        ],
        schema=schema,
    )
