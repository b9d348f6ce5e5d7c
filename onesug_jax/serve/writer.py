"""The thread that writes to the feedback store: it commits waiting changes in one transaction.

A change is a function of the connection. Its Future gets the result once it is on the disk. If a
change fails, it alone is rolled back, and its Future fails.
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
_MAX_BATCH = 256  # most changes of one transaction
_PRUNE_SECONDS = 3600.0
_END = None  # the last entry of the queue


class Busy(Exception):
    """Too many changes are waiting, or the store is down or closed."""


class Writer:
    """Makes changes in the order of their submission.

    Args:
      connection: used by this writer only, which closes it.
      most: waiting changes; more are refused.
      check: raises sqlite3.Error if the file must not be written.
      prune: a change made at the start and then every hour.
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
        self._waiting: queue.Queue = queue.Queue(most)  # (change, erase, future)
        self._gate, self._closed = threading.Lock(), False
        self._unerased = False  # the write-ahead log still contains deleted text
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def submit(self, change: Change, erase: bool = False) -> Future:
        """Makes a change; with `erase`, also removes deleted text from the write-ahead log.

        Raises:
          Busy: too many changes are waiting, or the writer is closed.
        """
        future: Future = Future()
        with self._gate:
            if self._closed:
                raise Busy("the store is closed")
            try:
                self._waiting.put_nowait((change, erase, future))
            except queue.Full:
                raise Busy(f"{self._most} events are waiting to be written") from None
        return future

    def close(self) -> None:
        """Makes the waiting changes and ends the thread."""
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
                batch = [self._waiting.get(timeout=min(rest, 1.0) if self._unerased else rest)]
            except queue.Empty:
                if self._unerased:
                    self._erase()
                continue
            with contextlib.suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._waiting.get_nowait())
            self._commit([one for one in batch if one is not _END])
            if _END in batch:
                break
        self.connection.close()

    def _erase(self) -> None:
        """Truncates the write-ahead log; while another process reads it, the next attempt does."""
        self._unerased = True
        with contextlib.suppress(sqlite3.Error):
            busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._unerased = bool(busy)

    def _commit(self, batch: list) -> None:
        outcomes: list[tuple[Any, Exception | None]] = []
        try:
            self._check()
            self.connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._apply(change) for change, _, _ in batch]
            self.connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            outcomes = [(None, error)] * len(batch)
        if any(erase for _, erase, _ in batch):
            self._erase()
        for (_, _, future), (result, failure) in zip(batch, outcomes, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_exception(failure) if failure else future.set_result(result)

    def _apply(self, change: Change) -> tuple[Any, Exception | None]:
        """(result, None) of a change; or (None, error) after rolling it back."""
        self.connection.execute("SAVEPOINT change")
        outcome: tuple[Any, Exception | None]
        try:
            outcome = change(self.connection), None
        except Exception as error:
            if not self.connection.in_transaction:  # a full disk: SQLite rolled everything back
                raise
            self.connection.execute("ROLLBACK TO change")
            outcome = None, error
        self.connection.execute("RELEASE change")
        return outcome
