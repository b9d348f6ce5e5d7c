"""The rows of a log, each with its user's latest earlier queries: H_u of the paper's input.

A history is taken from all files of a log, so a dev row sees the train rows of its user. It never
holds the row itself, another row of the same millisecond, or a later one. The paper uses the latest
ten queries (section 1: with more, accuracy fell).

Text models and external tools use this file; the item model takes its histories from the as-of
state (`logs.asof`). Both read the log once, in time order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.files import open_parquet
from onesug_jax.logs.asof.config import MINUTE_MS
from onesug_jax.logs.asof.histories import Histories
from onesug_jax.logs.asof.walk import Event, read_events
from onesug_jax.logs.schema import RECENT, RECENT_MINUTES

BATCH = 65_536
_USERS = 1 << 20  # most users in memory; the one seen longest ago is removed
_ADDED = {RECENT: pa.list_(pa.string()), RECENT_MINUTES: pa.list_(pa.float32())}


def with_history(log_files: Sequence[str], *, keep: str, history: int = 10) -> pa.RecordBatchReader:
    """Rows of `keep` in file order, each with the user's latest distinct earlier queries.

    The added column `recent` (list<string>) has at most `history` queries, newest first, each once.
    `recent_minutes` (list<float>) has their ages at the time of the row. Queries of one user in the
    same millisecond are ordered by request_id. In a row that has its own `history` (oldest first,
    not null), `recent` is that history reversed, each query once, with its `history_minutes`. Rows
    without a user_id have empty lists.

    Args:
      log_files: all files of the log, as `ingest` writes them.
      keep: the file whose rows are returned, one of `log_files`.
      history: most queries of a history.

    Returns:
      a reader over record batches, which raises UserError where a file is not in order of time.

    Raises:
      UserError: a file is missing, is not Parquet or lacks a column; `keep` is not in `log_files`.
    """
    files = list(dict.fromkeys(os.path.abspath(path) for path in log_files))
    if os.path.abspath(keep) not in files:
        raise UserError(f"history of {keep!r}: expected one of the log files {[*log_files]}.")
    events = read_events(files)
    own = [field for field in pq.read_schema(keep) if field.name not in _ADDED]
    schema = pa.schema([*own, *_ADDED.items()])

    def batches() -> Iterator[pa.RecordBatch]:
        past = _past(events, files.index(os.path.abspath(keep)), history)
        with open_parquet(keep) as file:
            for batch in file.iter_batches(BATCH, columns=[field.name for field in own]):
                added = zip(*itertools.islice(past, batch.num_rows), strict=True)
                lists = [
                    pa.array(column, kind)
                    for column, kind in zip(added, _ADDED.values(), strict=True)
                ]
                yield pa.record_batch([*batch.columns, *lists], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _past(
    events: Iterable[Event], file: int, history: int
) -> Iterator[tuple[list[str], list[float]]]:
    """For each row of that file, the queries before it, newest first, and their ages in minutes."""
    users = Histories(history, _USERS)
    now = 0
    pending: list[tuple[str, str]] = []  # user and query of the searches at time `now`
    for event in events:
        if event.time_ms != now:
            for user, query in pending:
                users.add(user, query, now)
            now, pending = event.time_ms, []
        if event.user:
            pending.append((event.user, event.query))
        if event.file != file:
            continue
        if event.history is not None:
            queries, minutes = event.history
            yield queries[:history], minutes[:history]
        else:
            queries, times = users.of(event.user)
            yield queries, [(now - time) / MINUTE_MS for time in times]
