"""The as-of counts of a service, updated by the feedback that it accepts.

Every server reads the journal of the feedback store (`journal`), which has the events of all
servers in one order. So servers on one store agree, and a killed server restores its counts when it
starts. Counting begins with a snapshot of the log that the model was trained on, and the events
later than its last row. When any server deletes a user, each server rebuilds its counts in this way
beside those in use, because that user's events are no longer in the store.

The engine polls every `EngineConfig.watch_seconds`, which is shorter than the freshness. Neither
feedback nor requests wait for a poll. The model reads the same arrays in training.
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
_READ_ROWS = 1000  # rows of the journal in one read
_LOCKED_ROWS = 50  # rows that are counted under one lock, while requests wait
_REST = 20  # pause between two rebuilds of the counts, in durations of a rebuild


class LiveCounts:
    """The as-of state of a running service. All methods may be called from any thread.

    Args:
      state: the as-of state of the log; this object takes ownership of it.
      store: the events. An unreadable store changes no counts and has no histories.
      since_ms: `state` contains the events of the store up to this time, except the histories,
        which a snapshot lacks; None: up to its latest search.
      again: loads the state of the log again, for a rebuild after a user's deletion; None: the
        counts keep that user's events.
      now_ms: the clock, milliseconds since 1970.
    """

    def __init__(
        self,
        state: AsOf,
        store: FeedbackStore,
        *,
        since_ms: int | None = None,
        again: Callable[[], AsOf] | None = None,
        now_ms: Callable[[], int] = journal.now_ms,
    ):
        self.config = state.config
        self._state, self._again, self._now = state, again, now_ms
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._since, self._seq = state.latest_ms if since_ms is None else since_ms, 0
        self._forgotten: tuple | None = None  # the latest deletion that the counts reflect
        self._rested = 0.0  # earliest time of the next rebuild
        self._journal: sqlite3.Connection | None = None
        with contextlib.suppress(sqlite3.Error):  # without a store, the counts are those of the log
            self._journal = store.reader()
            self._journal.row_factory = None  # plain tuples are faster
            self._replay(self._journal, state)

    def _replay(self, connection: sqlite3.Connection, state: AsOf) -> None:
        """Observes all events of the store; the next poll continues after them."""
        connection.execute("BEGIN")  # a consistent snapshot of the file
        try:
            deletion, seq = forgotten.latest(connection), 0
            for user, query, time_ms in journal.searches(connection, self._since):
                state.histories.add(user, query, time_ms)
            while rows := journal.read(connection, seq, self._since, _READ_ROWS):
                for row in rows:
                    self._observe(state, row)
                seq = rows[-1].seq
                state.at(self._now())
            state.at(self._now())  # also if the store is empty
        finally:
            connection.execute("COMMIT")
        self._seq, self._forgotten = seq, deletion

    def poll(self) -> int:
        """Observes the new rows of the journal and drops deleted users; returns the number of rows.

        Raises:
          sqlite3.Error: the journal cannot be read now; the next poll continues.
        """
        with self._reading:
            if self._journal is None:
                return 0
            rows = journal.read(self._journal, self._seq, self._since, _READ_ROWS)
            for start in range(0, len(rows) or 1, _LOCKED_ROWS):
                with self._lock:  # released between the parts for requests
                    for row in rows[start : start + _LOCKED_ROWS]:
                        self._observe(self._state, row)
                        self._seq = row.seq
                    self._state.at(self._now())
            if self._again and forgotten.latest(self._journal) != self._forgotten:
                self._rebuild(self._journal, self._again)
        return len(rows)

    def _rebuild(self, connection: sqlite3.Connection, again: Callable[[], AsOf]) -> None:
        """Counts the log and the store again; queries keep their numbers."""
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
        """Polls; if the journal cannot be read now, the next poll continues."""
        with contextlib.suppress(sqlite3.Error):
            self.poll()

    def _observe(self, state: AsOf, row: journal.Counted) -> None:
        visitor = visitor_of(row.user_id, row.session_id, row.timestamp_ms)
        if not row.level:  # not trusted
            state.remember(row.timestamp_ms, row.user_id, row.query)
            return
        if row.before:
            state.convert(row.timestamp_ms, row.query, row.level, row.before, visitor=visitor)
            return
        shown = tuple(json.loads(row.shown)) if self.config.shown else ()
        search = (row.timestamp_ms, row.user_id, row.prefix, row.query, row.level, visitor)
        state.observe(*search, shown)

    def close(self) -> None:
        """Closes the journal."""
        with self._reading:
            if self._journal is not None:
                self._journal.close()

    def forget(self, user_id: str) -> None:
        """Removes a user's history at once; a later poll removes the user from the counts."""
        with self._lock:
            self._state.forget(user_id)

    def remember(self, user_id: str, query: str, time_ms: int) -> None:
        """Adds a search to its user's history at once, before the next poll."""
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

    def requests(
        self, requests: Sequence[tuple[str, Sequence[str], Sequence[float]]]
    ) -> list[Items]:
        """The current features of requests (prefix, history, minutes)."""
        with self._lock:
            return self._state.requests(requests, self._now())

    def request(
        self,
        prefix: str,
        user_id: str,
        time_ms: int | None = None,
        history: tuple[Sequence[str], Sequence[float]] | None = None,
    ) -> Items:
        """The features of a request now or at a later time, see `AsOf.request`."""
        with self._lock:
            time_ms = self._now() if time_ms is None else time_ms
            return self._state.request(prefix, user_id, time_ms, history)

    def complete(self, prefix: str, k: int) -> list[str]:
        """At most k completions of a prefix, the most searched now first."""
        with self._lock:
            self._state.at(self._now())
            return [self._state.text(int(n)) for n in self._state.complete(prefix, k)]

    def searched(self, text: str) -> float:
        """The search count of a query at the longest half-life; 0 if the query does not exist."""
        with self._lock:
            number = self._state.number(text)
            if not self._state.exists(number):
                return 0.0
            return float(self._state.counts(np.array([number])).max())

    def may_write(self, text: str) -> bool:
        """Whether a query that is no candidate may be shown: False if it was searched, but by too
        few visitors to exist.
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
        """Seconds until other users' requests see a search."""
        return self._state.config.freshness_ms / 1000

    def text(self, number: int) -> str:
        """The query with a number."""
        return self._state.text(number)

    def __len__(self) -> int:
        """The number of queries; it grows with new queries."""
        return len(self._state)
