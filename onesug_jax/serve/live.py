"""What people search now: the as-of counts of a service, moved by the feedback it accepts.

Every server reads the journal of the feedback store (`journal`), its own events and those of the
others alike, in one order; so servers on one store agree, and one that was killed counts the same
again when it starts. Counting begins from a snapshot of the log that the model was trained on,
with the events that are later than its last row. When a user is forgotten, by whichever server, the
counts are made anew in this way, beside those in use: that user's events are in the store no more.

The engine polls every `EngineConfig.watch_seconds`, sooner than a search is visible to others:
events that came together are read together, and neither feedback nor requests wait for it. The
model reads the same arrays in training.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from onesug_jax.logs.asof.config import MINUTE_MS
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.schema import visitor_of
from onesug_jax.serve import forgotten, heap, journal
from onesug_jax.serve.feedback import FeedbackStore

History = tuple[tuple[str, ...], tuple[float, ...]]
_AT_ONCE = 1000  # rows of the journal that are read together
_LOCKED = 50  # of them, that requests wait for
_REST = 20  # times as long as it takes, between two times that the counts are made anew


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class LiveCounts:
    """The as-of state of a running service. All methods may be called from any thread.

    Args:
      state: the as-of state of the log; from now on it is this object's alone.
      store: where the events are, those already stored included. One that cannot be read moves no
        counts and has no histories.
      since_ms: events of the store up to this time are in `state` already, but for the histories,
        which a snapshot lacks; None: up to its latest search.
      again: the state of the log once more, for when a user is forgotten; None: what was counted
        of such a user stays.
      now_ms: the clock, milliseconds since 1970.
    """

    def __init__(
        self,
        state: AsOf,
        store: FeedbackStore,
        *,
        since_ms: int | None = None,
        again: Callable[[], AsOf] | None = None,
        now_ms: Callable[[], int] = _now_ms,
    ):
        self.config = state.config
        self._state, self._again, self._now = state, again, now_ms
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._since, self._seq = state.latest_ms if since_ms is None else since_ms, 0
        self._forgotten: tuple | None = None  # the latest deletion that the counts are without
        self._rested = 0.0  # when the counts may be made anew
        self._journal: sqlite3.Connection | None = None
        with contextlib.suppress(sqlite3.Error):  # counts and histories are then those of the log
            self._journal = store.reader()
            self._journal.row_factory = None  # plain tuples are read faster
            self._replay(self._journal, state)

    def _replay(self, connection: sqlite3.Connection, state: AsOf) -> None:
        """Observes all that the store holds; to go on from there."""
        connection.execute("BEGIN")  # one state of the file, whatever is deleted meanwhile
        try:
            gone, seq = forgotten.latest(connection), 0
            for user, query, time_ms in journal.searches(connection, self._since):
                state.histories.add(user, query, time_ms)
            while rows := journal.read(connection, seq, self._since, _AT_ONCE):
                for row in rows:
                    self._observe(state, row)
                seq = rows[-1].seq
                state.at(self._now())
            state.at(self._now())  # also where the store holds nothing
        finally:
            connection.execute("COMMIT")
        self._seq, self._forgotten = seq, gone

    def poll(self) -> int:
        """Observes what the journal holds beyond what was read, and drops who was forgotten; how
        many rows were read.

        Raises:
          sqlite3.Error: it cannot be read just now; the next poll reads on.
        """
        with self._reading:
            if self._journal is None:
                return 0
            rows = journal.read(self._journal, self._seq, self._since, _AT_ONCE)
            for start in range(0, len(rows) or 1, _LOCKED):
                with self._lock:  # requests have their turn in between
                    for row in rows[start : start + _LOCKED]:
                        self._observe(self._state, row)
                        self._seq = row.seq
                    self._state.at(self._now())
            if self._again and forgotten.latest(self._journal) != self._forgotten:
                self._count_anew(self._journal, self._again)
        return len(rows)

    def _count_anew(self, connection: sqlite3.Connection, again: Callable[[], AsOf]) -> None:
        """Counts what the log and the store hold now; numbers of queries stay what they are."""
        began = time.monotonic()
        if began < self._rested:
            return
        try:
            with heap.long_lived():
                fresh = again()
                later = range(len(fresh), len(self._state))
                fresh.append_all([self._state.text(number) for number in later])
                self._replay(connection, fresh)
            with self._lock:
                self._state.become(fresh)
        finally:
            self._rested = time.monotonic() + _REST * (time.monotonic() - began)

    def poll_quietly(self) -> None:
        """Polls; a journal that cannot be read just now is read the next time."""
        with contextlib.suppress(sqlite3.Error):
            self.poll()

    def _observe(self, state: AsOf, row: journal.Counted) -> None:
        visitor = visitor_of(row.user_id, row.session_id, row.timestamp_ms)
        if not row.level:  # nobody vouches for it
            state.remember(row.timestamp_ms, row.user_id, row.query)
            return
        if row.before:
            rise = (row.level, row.before)
            state.convert(row.timestamp_ms, row.query, *rise, visitor=visitor)
            return
        shown = tuple(json.loads(row.shown)) if self.config.shown else ()
        what = (row.timestamp_ms, row.user_id, row.prefix, row.query, row.level, visitor)
        state.observe(*what, shown)

    def close(self) -> None:
        """Reads no more."""
        with self._reading:
            if self._journal is not None:
                self._journal.close()

    def forget(self, user_id: str) -> None:
        """Removes a user's history at once; the next polls drop what was counted."""
        with self._lock:
            self._state.forget(user_id)

    def remember(self, user_id: str, query: str, time_ms: int) -> None:
        """Puts a search of this server into its user's history at once, before it is polled."""
        if user_id and query:
            with self._lock:
                self._state.histories.add(user_id, query, time_ms)

    def history(self, user_id: str) -> History:
        """A user's queries, newest first, and how many minutes ago each was searched."""
        with self._lock:
            now = self._now()
            self._state.at(now)
            texts, times = self._state.histories.of(user_id)
        return tuple(texts), tuple(max(now - time, 0) / MINUTE_MS for time in times)

    def requests(self, asked: Sequence[tuple[str, Sequence[str], Sequence[float]]]) -> list[Items]:
        """The features of requests (prefix, history, minutes) now."""
        with self._lock:
            return self._state.requests(asked, self._now())

    def request(
        self,
        prefix: str,
        user_id: str,
        time_ms: int | None = None,
        history: tuple[Sequence[str], Sequence[float]] | None = None,
    ) -> Items:
        """The features of a request now, or at a later time, as `AsOf.request`."""
        with self._lock:
            time_ms = self._now() if time_ms is None else time_ms
            return self._state.request(prefix, user_id, time_ms, history)

    def complete(self, prefix: str, k: int) -> list[str]:
        """At most k queries that start with a prefix, the most searched now first."""
        with self._lock:
            self._state.at(self._now())
            return [self._state.text(int(n)) for n in self._state.complete(prefix, k)]

    def searched(self, text: str) -> float:
        """How often a query was searched, at the half-life that remembers most; 0 for one that does
        not exist.
        """
        with self._lock:
            number = self._state.number(text)
            if not self._state.exists(number):
                return 0.0
            return float(self._state.counts(np.array([number])).max())

    def may_write(self, text: str) -> bool:
        """Whether a query may be shown that is no candidate: False where it was searched, but by
        fewer visitors than make it exist.
        """
        with self._lock:
            number = self._state.number(text)
            if number >= 0:
                return self._state.exists(number)
            return text not in self._state.existence.waiting

    def number(self, text: str) -> int:
        """The number of a query, -1 if it has none."""
        return self._state.number(text)

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
