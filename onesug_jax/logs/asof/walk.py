"""A walk through a log in time order with the as-of state: the arrays that a service would compute.

For each selected row, features are computed first; then the row updates the counts. So a row sees
earlier rows only, and its own search need not be subtracted from statistics of the whole log.

Rows are streamed, so a log may be larger than the memory. Another process can continue from a row
and the pickled state before it, with the same results.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import open_parquet
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, Level, request_level, visitors_of

_NEEDED = (
    *("request_id", "user_id", "session_id", "timestamp_ms", "prefix", "query"),
    *("shown", "clicked_items", "ordered_items"),
)
_BATCH = 8192  # rows of a file in memory


class Event(NamedTuple):
    """One row of a log, as the as-of state needs it.

    Attributes:
      file, row: its place in the log.
      history: the row's own history, newest first, and its ages in minutes; None: it has none.
      profile: values of the requested columns.
    """

    time_ms: int
    user: str
    visitor: str
    prefix: str
    query: str
    level: Level
    shown: Sequence[str]
    file: int
    row: int
    history: tuple[list[str], list[float]] | None = None
    profile: tuple[str, ...] = ()


def read_events(
    files: Sequence[str], *, profile: Sequence[str] = (), first: Sequence[int] | None = None
) -> Iterator[Event]:
    """The rows of the files of a log, as `ingest` writes them, in time order.

    Rows of the same millisecond are ordered by request_id, then by file and row.

    Args:
      files: each in order of time and request_id.
      profile: the columns of `Event.profile`.
      first: the first row that is read of each file; None: 0.

    Raises:
      UserError: a file is missing, is not Parquet, lacks a column or is not in order.
    """
    paths = [os.fspath(path) for path in files]
    for path in paths:
        _check(path)
    starts = [0] * len(paths) if first is None else first
    streams = [
        _rows(path, number, profile, start)
        for number, (path, start) in enumerate(zip(paths, starts, strict=True))
    ]
    merged = heapq.merge(*streams) if len(streams) > 1 else iter(streams[0])
    return (event for *_, event in merged)


def _check(path: str) -> None:
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UserError(
            f"{path}: column {missing[0]!r} is missing; found: {', '.join(names)}. Run ingest on "
            "the log first."
        )


def _unreadable(path: str, error: Exception) -> UserError:
    check_refused(path, error)
    return UserError(
        f"{path}: expected a Parquet file as ingest writes it; reading it failed: {error}"
    )


def _rows(
    path: str, number: int, profile: Sequence[str], first: int
) -> Iterator[tuple[int, str, int, int, Event]]:
    """Time, request_id, file, row and event of a file's rows, from row `first` on."""
    before: tuple[int, str] = (0, "")
    for start, batch in _batches(path, profile, first):
        columns = [batch[name].to_pylist() for name in _NEEDED]
        nulls = [None] * batch.num_rows
        own = [
            batch[name].to_pylist() if name in batch.schema.names else nulls
            for name in (HISTORY, HISTORY_MINUTES)
        ]
        values_of = [[value or "" for value in batch[name].to_pylist()] for name in profile]
        profiles = zip(*values_of, strict=True) if profile else [()] * batch.num_rows
        rows = zip(visitors_of(batch), profiles, zip(*columns, *own, strict=True), strict=True)
        for row, (visitor, values, cells) in enumerate(rows, start):
            request, user, _, time, prefix, query, shown, clicked, ordered, past, minutes = cells
            if (time, request) < before:
                raise UserError(
                    f"{path}: row {row} is of an earlier time than the row before it; rows are "
                    "expected in order of timestamp_ms and request_id. Run ingest on the log first."
                )
            before = time, request
            history = None if past is None else _newest_first(past, minutes)
            level = request_level(clicked or (), ordered or ())
            fields = (time, user or "", visitor, prefix, query, level, shown or ())
            yield time, request, number, row, Event(*fields, number, row, history, values)


def _batches(path: str, profile: Sequence[str], first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of a file from row `first` on, each with the number of its first row."""
    try:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            columns = [n for n in (*_NEEDED, HISTORY, HISTORY_MINUTES) if n in names]
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            group = int(np.searchsorted(ends, first, side="right"))
            row = int(ends[group - 1]) if group else 0
            for batch in file.iter_batches(
                _BATCH, row_groups=range(group, len(sizes)), columns=[*columns, *profile]
            ):
                skipped = min(max(first - row, 0), batch.num_rows)
                if skipped < batch.num_rows:
                    yield row + skipped, batch.slice(skipped)
                row += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _newest_first(
    past: Sequence[str], minutes: Sequence[float] | None
) -> tuple[list[str], list[float]]:
    """A row's own history, each query once with its latest age; ages are 0 if the row has none."""
    latest = dict(zip(past, minutes or [0.0] * len(past), strict=True))
    order = list(dict.fromkeys(past[::-1]))
    return order, [latest[query] for query in order]


def observe(state: AsOf, event: Event) -> None:
    """Update the state with a row."""
    fields = (event.time_ms, event.user, event.prefix, event.query, event.level, event.visitor)
    state.observe(*fields, event.shown)


def ask(state: AsOf, event: Event) -> Items:
    """The features of a row's request."""
    return state.request(event.prefix, event.user, event.time_ms, event.history)


def walk(
    state: AsOf,
    events: Iterable[Event],
    wanted: Callable[[Event], bool] = lambda event: True,
    block: int = 4096,
) -> Iterator[tuple[dict[str, np.ndarray], list[Event]]]:
    """Blocks of training rows in time order; the state observes all events.

    Args:
      state: the state before the first event.
      events: rows of a log in time order.
      wanted: whether an event becomes a row.
      block: rows of a block; the last may have fewer.

    Yields:
      arrays over B rows, and their B events. As in `Items`: `candidates` [B, C], `candidate_counts`
      [B, C, K], `history` and `history_minutes` [B, H], `clock` [B, 2]. `file` and `row`: the place
      of each row. `query`: number + 1 of the searched query (0: it has no number).
      `target_candidate`: its place + 1 among the candidates (0: it is absent). `new`: whether the
      query did not exist at the row's moment. `level`.
    """
    rows: list[tuple[Event, Items, int, bool]] = []
    for event in events:
        if wanted(event):
            items = ask(state, event)
            number = state.number(event.query)
            rows.append((event, items, number, not state.exists(number)))
            if len(rows) == block:
                yield _block(rows)
                rows = []
        observe(state, event)
    if rows:
        yield _block(rows)


def skip(state: AsOf, events: Iterable[Event], wanted: Callable[[Event], bool]) -> None:
    """Update the state as `walk` does, without computing rows."""
    for event in events:
        if wanted(event):
            state.at(event.time_ms)
        observe(state, event)


def _block(rows: list[tuple[Event, Items, int, bool]]) -> tuple[dict[str, np.ndarray], list[Event]]:
    events, items, numbers, new = zip(*rows, strict=True)
    arrays = {name: np.stack([getattr(one, name) for one in items]) for name in _ARRAYS}
    queries = np.array(numbers, np.int32) + 1
    hit = (arrays["candidates"] == queries[:, None]) & (queries[:, None] > 0)
    arrays["target_candidate"] = np.where(hit.any(1), hit.argmax(1) + 1, 0).astype(np.int32)
    arrays |= {
        "query": queries,
        "new": np.array(new),
        "level": np.array([event.level for event in events], np.int32),
        "file": np.array([event.file for event in events], np.int32),
        "row": np.array([event.row for event in events], np.int64),
    }
    return arrays, list(events)


_ARRAYS = ("candidates", "candidate_counts", "history", "history_minutes", "clock")
