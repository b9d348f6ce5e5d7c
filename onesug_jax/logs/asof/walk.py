"""A log in time order through the as-of state: the arrays that the service would have given.

Every wanted row is asked first and observed afterwards, so it sees what was there before it and
never itself. That takes no leaving out of a row's own search from statistics of the whole log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.history import ages
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, Level, request_level, visitors_of

_NEEDED = (
    *("request_id", "user_id", "session_id", "timestamp_ms", "prefix", "query"),
    *("shown", "clicked_items", "ordered_items"),
)
_OPTIONAL = (HISTORY, HISTORY_MINUTES)


@dataclass(frozen=True)
class Event:
    """One row of a log as the as-of state needs it.

    Attributes:
      file, row: where it stands.
      history: what the row itself brings, newest first, and its ages in minutes; None: nothing.
    """

    time_ms: int
    user: str
    visitor: str
    prefix: str
    query: str
    level: Level
    shown: tuple[str, ...]
    file: int
    row: int
    history: tuple[list[str], list[float]] | None = None


def read_events(files: Sequence[str]) -> list[Event]:
    """All rows of the files of a log, as `ingest` writes them, in time order.

    Rows of the same millisecond are ordered by request_id, then by file and row.

    Raises:
      UserError: a file is missing, is no Parquet file or lacks a column.
    """
    found = []
    for number, path in enumerate(files):
        table = _read(os.fspath(path))
        columns = [table[name].to_pylist() for name in _NEEDED]
        own = [
            table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
            for name in _OPTIONAL
        ]
        for row, (visitor, values) in enumerate(
            zip(visitors_of(table), zip(*columns, *own, strict=True), strict=True)
        ):
            request, user, _, time, prefix, query, shown, clicked, ordered, past, minutes = values
            history = None if past is None else _newest_first(past, minutes)
            level = request_level(clicked or (), ordered or ())
            what = (time, user or "", visitor, prefix, query, level, tuple(shown or ()))
            event = Event(*what, number, row, history)
            found.append((time, request, number, row, event))
    found.sort(key=lambda one: one[:4])
    return [event for *_, event in found]


def _read(path: str) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        missing = [name for name in _NEEDED if name not in names]
        if not missing:
            return pq.read_table(path, columns=[*_NEEDED, *(n for n in _OPTIONAL if n in names)])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: expected a Parquet file as ingest writes it; reading it failed: {error}"
        ) from None
    raise UserError(
        f"{path}: column {missing[0]!r} is missing; found: {', '.join(names)}. Run ingest on the "
        "log first."
    )


def _newest_first(
    past: Sequence[str], minutes: Sequence[float] | None
) -> tuple[list[str], list[float]]:
    """A row's own history, each query once, at its latest age."""
    latest = dict(zip(past, ages(minutes or (), len(past)).tolist(), strict=True))
    order = list(dict.fromkeys(past[::-1]))
    return order, [latest[query] for query in order]


def observe(state: AsOf, event: Event) -> None:
    """Lets the state observe a row."""
    what = (event.time_ms, event.user, event.prefix, event.query, event.level, event.visitor)
    state.observe(*what, event.shown)


def ask(state: AsOf, event: Event) -> Items:
    """The features of a row's request."""
    return state.request(event.prefix, event.user, event.time_ms, event.history)


def walk(
    state: AsOf, events: Sequence[Event], wanted: Sequence[bool] | np.ndarray, block: int = 4096
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of training rows in time order; the state observes all events.

    Args:
      state: the state before the first event.
      events: rows of a log in time order.
      wanted: which of them become rows.
      block: rows of a block; the last may have fewer.

    Yields:
      arrays over B rows: `candidates` [B, C], `candidate_counts` [B, C, K], `history` and
      `history_minutes` [B, H], `clock` [B, 2] as `Items` has them; `file` and `row`, where each row
      stands; `query`, number + 1 of what was searched (0: it has no number); `target_candidate`,
      its place + 1 among the candidates (0: it is not there); `new`, whether the query did not
      exist at the row's moment; `level`.
    """
    waiting: list[tuple[Event, Items, int, bool]] = []
    for event, asked in zip(events, wanted, strict=True):
        if asked:
            items = ask(state, event)
            number = state.number(event.query)
            waiting.append((event, items, number, not state.exists(number)))
            if len(waiting) == block:
                yield _block(waiting)
                waiting = []
        observe(state, event)
    if waiting:
        yield _block(waiting)


def _block(rows: list[tuple[Event, Items, int, bool]]) -> dict[str, np.ndarray]:
    events, items, numbers, new = zip(*rows, strict=True)
    arrays = {name: np.stack([getattr(one, name) for one in items]) for name in _ARRAYS}
    queries = np.array(numbers, np.int32) + 1
    hit = (arrays["candidates"] == queries[:, None]) & (queries[:, None] > 0)
    arrays["target_candidate"] = np.where(hit.any(1), hit.argmax(1) + 1, 0).astype(np.int32)
    return arrays | {
        "query": queries,
        "new": np.array(new),
        "level": np.array([event.level for event in events], np.int32),
        "file": np.array([event.file for event in events], np.int32),
        "row": np.array([event.row for event in events], np.int64),
    }


_ARRAYS = ("candidates", "candidate_counts", "history", "history_minutes", "clock")
