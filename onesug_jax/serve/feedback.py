"""The feedback store in SQLite: histories for the service, and the log for the next update.

One row is one suggestion request and its outcome, in the columns of the log (`logs.schema`), so
that `update` reads the output of `export`. An event is acknowledged only when it is on the disk
(WAL, synchronous=FULL), so a killed server loses no acknowledged event. Events that arrive together
share one transaction and one flush. Several server processes may share one file.

A request may be reported again: an equal event changes nothing, and items that were opened or
ordered later are added. An untrusted event enters only its user's history. Events older than
`keep_days` are deleted; those of a deleted user are deleted and overwritten at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.logs.times import DAY_MS
from onesug_jax.serve import events, forgotten
from onesug_jax.serve.events import Conflict, Event, Unknown
from onesug_jax.serve.export import export
from onesug_jax.serve.writer import Busy, Writer

__all__ = ["Busy", "Conflict", "Event", "FeedbackConfig", "FeedbackStore", "Unknown"]

FOLDER, FILE = "feedback", "events.sqlite"  # in WORK_DIR
MOST_WAITING = 1024  # events to be written; more are refused
BUSY_SECONDS = 5.0  # to wait for another process that writes
_HISTORY_EVENTS = 500  # latest events of a user that are read for a history


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """How feedback is stored, and when it is trusted.

    Attributes:
      path: the SQLite file; None: WORK_DIR/feedback/events.sqlite.
      keep_days: age at which events are deleted; None: never.
      trust: "served": feedback counts for others, and is exported, if /suggest returned its
        request_id for its prefix and user; "all": with any request_id, for a backend with its own
        ids.
      id_hours: maximum age of such an id at its first feedback.
      visitors_per_source: visitors of one address that count toward a query on a day, each once;
        None: any number. With an API key, this and the next two settings have no effect.
      feedback_per_minute: accepted feedback of one address, more gets 429; None: any number.
      ids_per_minute: lists of one address whose feedback counts for others; None: any number.
      required: without the file, the service does not start; if False, it starts without storing
        feedback, and /ready reports it.
    """

    path: str | None = None
    keep_days: float | None = 90.0
    trust: str = "served"
    id_hours: float = 24.0
    visitors_per_source: int | None = 1
    feedback_per_minute: int | None = 120
    ids_per_minute: int | None = 1200
    required: bool = False

    def __post_init__(self):
        if self.keep_days is not None and self.keep_days <= 0:
            raise UserError(f"FeedbackConfig.keep_days = {self.keep_days}: expected above 0.")
        if self.trust not in ("served", "all"):
            raise UserError(f'FeedbackConfig.trust = {self.trust!r}: expected "served" or "all".')
        if not self.id_hours > 0:
            raise UserError(f"FeedbackConfig.id_hours = {self.id_hours}: expected hours above 0.")
        for name in ("visitors_per_source", "feedback_per_minute", "ids_per_minute"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise UserError(f"FeedbackConfig.{name} = {most}: expected 1 or more, or None.")


class FeedbackStore:
    """The events of one file. All methods may be called from any thread.

    Args:
      path: the SQLite file; it and its folder are created if missing.
      config: limits and ages.

    Raises:
      UserError: the file cannot be opened, or is not a feedback store.
    """

    def __init__(self, path: str, config: FeedbackConfig = FeedbackConfig()):
        self.path, self.config = path, config
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            writing = self._connect()
            version = writing.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, events.VERSION):
                raise UserError(
                    f"{path}: made by another version (format {version}, expected "
                    f"{events.VERSION}); name another file with --gin.FeedbackConfig.path=PATH"
                )
            writing.executescript(events.TABLES)
            self._reading = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{path}: cannot store feedback here: {error}. Name another file with "
                "--gin.FeedbackConfig.path=PATH"
            ) from None
        self._opened = os.stat(path).st_ino
        self._reader = threading.Lock()
        self._writer = Writer(writing, MOST_WAITING, check=self.check, prune=self._delete_old)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        os.chmod(self.path, 0o600)
        connection.row_factory = sqlite3.Row
        # secure_delete overwrites deleted text.
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    # ------------------------------------------------------------------ writing

    def add(self, event: Event, trusted: bool = True) -> Future:
        """Writes an event; the Future holds "new", "more" or "same" once it is on the disk.

        An untrusted event enters only its user's history and is not exported. An addition to a
        stored event is as trusted as that event. The Future fails with Conflict, Unknown, or
        sqlite3.Error.

        Raises:
          Busy: too many events are waiting.
        """
        return self._writer.submit(lambda connection: events.put(connection, event, trusted))

    def forget(self, user_id: str) -> Future:
        """Deletes all events of a user; the Future holds their number once they are overwritten.
        Later updates leave out older rows of this user (`forgotten`).
        """
        return self._writer.submit(lambda connection: forgotten.forget(connection, user_id), True)

    def exports(self) -> list[tuple[str, int]]:
        """See `forgotten.exports`."""
        with self._reader:
            return forgotten.exports(self._reading)

    def probe(self) -> Future:
        """Writes nothing; the Future fails, or Busy is raised, if `add` would fail."""
        return self._writer.submit(lambda connection: None)

    def _delete_old(self, connection: sqlite3.Connection) -> int:
        if self.config.keep_days is None:
            return 0
        oldest = int(1000 * time.time() - self.config.keep_days * DAY_MS)
        return connection.execute("DELETE FROM events WHERE timestamp_ms < ?", (oldest,)).rowcount

    def check(self) -> None:
        """Checks that the path still leads to the opened file, because SQLite would go on writing
        to a deleted one.

        Raises:
          sqlite3.OperationalError: it does not.
        """
        try:
            inode = os.stat(self.path).st_ino
        except OSError:
            inode = None
        if inode != self._opened:
            raise sqlite3.OperationalError("the file was deleted or replaced")

    def close(self) -> None:
        """Writes the waiting events and closes the file."""
        self._writer.close()
        with self._reader:
            self._reading.close()

    # ------------------------------------------------------------------ reading

    def reader(self) -> sqlite3.Connection:
        """A new connection for reading the journal; the caller closes it."""
        return self._connect()

    def history(self, user_id: str, most: int) -> dict[str, int]:
        """A user's latest distinct queries, newest first, with the time of each search in
        milliseconds since 1970; empty for the empty user_id.
        """
        if not user_id or most < 1:
            return {}
        self.check()
        with self._reader:
            rows = self._reading.execute(
                "SELECT query, timestamp_ms FROM events WHERE user_id = ? "
                "ORDER BY timestamp_ms DESC, rowid DESC LIMIT ?",
                (user_id, _HISTORY_EVENTS),
            ).fetchall()
        latest: dict[str, int] = {}
        for query, at in rows:
            latest.setdefault(query, at)
        return dict(itertools.islice(latest.items(), most))

    def count(
        self, user_id: str | None = None, *, since_ms: int = 0, trusted: bool | None = None
    ) -> int:
        """The number of events since a time, optionally of one user, or trusted or untrusted."""
        where = "timestamp_ms >= ?"
        values: list[Any] = [since_ms]
        for name, value in (("user_id", user_id), ("trusted", trusted)):
            if value is not None:
                where, values = f"{where} AND {name} = ?", [*values, value]
        with self._reader:
            rows = self._reading.execute(f"SELECT count(*) FROM events WHERE {where}", values)
            return rows.fetchone()[0]

    def export(
        self, path: str, *, profile: Sequence[str] = (), since_ms: int = 0, untrusted: bool = False
    ) -> int:
        """Writes the trusted events as a log, `path` (Parquet), oldest first; returns their number.

        `profile` names profile columns that are written even if no event has them; an event without
        a value has "". With `untrusted`, all events are written. The write is atomic; without
        events there is no file.
        """
        self._writer.submit(lambda connection: forgotten.note_export(connection, path)).result()
        with self._reader:
            return export(self._reading, path, profile, since_ms, untrusted)
