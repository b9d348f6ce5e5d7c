"""The one thread that changes the feedback store: what has gathered becomes one transaction.

A change is a function of the connection, and its answer comes in a Future once it is on the disk.
A change that fails takes back what it did and fails its own Future; it neither ends the thread nor
touches the changes beside it.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Change = Callable[[sqlite3.Connection], Any]
_TOGETHER = 256  # most changes of one transaction
_PRUNE_SECONDS = 3600.0
_END = None  # the last thing the thread is given


class Busy(Exception):
    """Too many changes are waiting, or the store is down or closed."""


class Writer:
    """Makes changes, in the order in which they were asked for.

    Args:
      connection: which only this writer uses; it is closed at the end.
      most: changes that may wait; more are refused.
      check: raises sqlite3.Error where the file must not be written.
      prune: what is changed at the start and then every hour.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        most: int,
        *,
        check: Callable[[], None],
        prune: Change,
    ):
        self.connection, self._most, self._check, self._prune = connection, most, check, prune
        self._waiting: queue.Queue = queue.Queue(most)  # (change, emptied, future)
        self._gate, self._closed = threading.Lock(), False
        self._unemptied = False  # what was deleted still stands in the write-ahead log
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def ask(self, change: Change, emptied: bool = False) -> Future:
        """Makes a change; with `emptied`, what it deletes goes from the write-ahead log too.

        Raises:
          Busy: too many changes are waiting, or the writer is closed.
        """
        future: Future = Future()
        with self._gate:
            if self._closed:
                raise Busy("the store is closed")
            try:
                self._waiting.put_nowait((change, emptied, future))
            except queue.Full:
                raise Busy(f"{self._most} events are waiting to be written") from None
        return future

    def close(self) -> None:
        """Makes the changes that are waiting, and ends."""
        with self._gate:
            self._closed = True
        self._waiting.put(_END)
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + _PRUNE_SECONDS
                self._commit([(self._prune, True, Future())])
            rest = max(0.0, due - time.monotonic())
            try:
                asked = [self._waiting.get(timeout=min(rest, 1.0) if self._unemptied else rest)]
            except queue.Empty:
                if self._unemptied:
                    self._empty()
                continue
            with contextlib.suppress(queue.Empty):
                while len(asked) < _TOGETHER:
                    asked.append(self._waiting.get_nowait())
            last = _END in asked
            self._commit([one for one in asked if one is not _END])
            if last:
                break
        self.connection.close()

    def _empty(self) -> None:
        """Takes what was deleted out of the write-ahead log too; what another process is reading
        stays until the next attempt.
        """
        self._unemptied = True
        with contextlib.suppress(sqlite3.Error):
            busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._unemptied = bool(busy)

    def _commit(self, asked: list) -> None:
        answers: list[tuple[Any, Exception | None]] = []
        try:
            self._check()
            self.connection.execute("BEGIN IMMEDIATE")
            answers = [self._changed(change) for change, _, _ in asked]
            self.connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            answers = [(None, error)] * len(asked)
        if any(emptied for _, emptied, _ in asked):
            self._empty()
        for (_, _, future), (answer, failure) in zip(asked, answers, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_exception(failure) if failure else future.set_result(answer)

    def _changed(self, change: Change) -> tuple[Any, Exception | None]:
        """The answer of a change, or why it failed; then nothing of it is left."""
        self.connection.execute("SAVEPOINT change")
        found: tuple[Any, Exception | None]
        try:
            found = change(self.connection), None
        except Exception as error:
            if not self.connection.in_transaction:  # SQLite has taken back all of it: a full disk
                raise
            self.connection.execute("ROLLBACK TO change")
            found = None, error
        self.connection.execute("RELEASE change")
        return found
