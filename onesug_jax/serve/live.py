"""What people search now: the as-of counts of a service, moved by the feedback it accepts.

Every server reads the journal of the feedback store (`journal`), its own events and those of the
others alike, in one order; so servers on one store agree, and one that was killed counts the same
again when it starts. Counting begins from a snapshot of the log that the model was trained on,
with the events that are later than its last row.

The engine polls every `EngineConfig.watch_seconds`, sooner than a search is visible to others:
events that came together are read together, and neither feedback nor requests wait for it. The
model reads the same arrays in training.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.schema import Level
from onesug_jax.serve import journal
from onesug_jax.serve.feedback import Event, FeedbackStore

_AT_ONCE = 1000  # rows of the journal that are read together


def accept_all(event: Event) -> bool:
    """Whether an event moves the counts: any does."""
    return True


class LiveCounts:
    """The as-of state of a running service. All methods may be called from any thread.

    Args:
      state: what is known of the log; from here on it is this object's alone.
      store: where the events are, those already stored included.
      accept: whether an event may move the counts; the place for defences against poisoning. It is
        asked once, before the event is stored, and the store's journal holds the answer for all
        servers: `store.add(event, counted=live.accept(event))`.
    """

    def __init__(
        self, state: AsOf, store: FeedbackStore, accept: Callable[[Event], bool] = accept_all
    ):
        self.accept = accept
        self._state, self._lock = state, threading.Lock()
        self._since, self._seq = state.latest_ms, 0
        self._journal = store.reader()
        while self.poll():
            pass

    def poll(self) -> int:
        """Observes what the journal holds beyond what was read; how many rows that were.

        Raises:
          sqlite3.Error: it cannot be read just now; the next poll reads on.
        """
        with self._lock:
            rows = journal.read(self._journal, self._seq, self._since, _AT_ONCE)
            for row in rows:
                self._observe(row)
                self._seq = row.seq
            self._state.at(_now_ms())
        return len(rows)

    def _observe(self, row: journal.Counted) -> None:
        level = Level(row.level)
        if row.before:
            self._state.convert(row.timestamp_ms, row.query, level, Level(row.before))
            return
        visitor = f"u{row.user_id}" if row.user_id else f"s{row.session_id}"
        if not row.user_id and not row.session_id:
            visitor = f"r{row.request_id}"
        self._state.observe(
            row.timestamp_ms, row.user_id, row.prefix, row.query, level, visitor=visitor
        )

    def close(self) -> None:
        """Reads no more."""
        with self._lock:
            self._journal.close()

    def forget(self, user_id: str) -> None:
        """Removes a user's history at once; what was counted of all users stays until a restart."""
        with self._lock:
            self._state.forget(user_id)

    def request(
        self,
        prefix: str,
        user_id: str,
        time_ms: int | None = None,
        history: tuple[Sequence[str], Sequence[float]] | None = None,
    ) -> Items:
        """What is known of a request now, or at a later time, as `AsOf.request`."""
        with self._lock:
            return self._state.request(
                prefix, user_id, _now_ms() if time_ms is None else time_ms, history
            )

    def complete(self, prefix: str, k: int) -> list[str]:
        """At most k queries that start with a prefix, the most searched now first."""
        with self._lock:
            self._state.at(_now_ms())
            return [self._state.text(int(n)) for n in self._state.complete(prefix, k)]

    def searches(self, texts: Sequence[str]) -> np.ndarray:
        """How often each query was searched, decayed at each half-life, `[n, half-lives]`; 0 for
        one that does not exist.
        """
        with self._lock:
            state = self._state
            numbers = np.array([state.number(text) for text in texts], np.int64)
            exist = np.array([state.exists(int(n)) for n in numbers], bool)
            counts = state.counts(np.maximum(numbers, 0)) if len(state) else 0.0
            return counts * exist[:, None] * np.ones(len(self.columns))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `searches`."""
        config = self._state.config
        return config.columns[: len(config.half_lives_days)]

    @property
    def freshness(self) -> float:
        """Seconds after which a search is seen by others."""
        return self._state.config.freshness_ms / 1000

    def text(self, number: int) -> str:
        """The query of that number."""
        return self._state.text(number)

    def __len__(self) -> int:
        """How many queries have a number; it grows as new ones appear."""
        return len(self._state)


def poll_quietly(live: LiveCounts) -> None:
    """Polls; a journal that cannot be read just now is read the next time."""
    try:
        live.poll()
    except sqlite3.Error:
        pass


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
