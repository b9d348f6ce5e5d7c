"""The journal: searches, item clicks and orders in the order in which they were accepted.

It is in the file of the events and is written in the same transaction, so acknowledged events are
counted again after a crash. A row is a new event, or a rise of its level. Level 0 is an untrusted
event, which enters only its user's history. Row numbers only grow, so each server reads the rows
after its last one. A row repeats the event's fields that the counts need, because a read of one row
is then one page, without the events and their index. Deleted events leave the journal too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

_EVENT = "user_id, session_id, timestamp_ms, prefix, query, shown"
TABLES = """
CREATE TABLE IF NOT EXISTS journal (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL,
  before INTEGER NOT NULL, level INTEGER NOT NULL, user_id TEXT NOT NULL, session_id TEXT NOT NULL,
  timestamp_ms INTEGER NOT NULL, prefix TEXT NOT NULL, query TEXT NOT NULL,
  shown TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS journal_by_request ON journal (request_id);
CREATE TRIGGER IF NOT EXISTS journal_follows AFTER DELETE ON events BEGIN
  DELETE FROM journal WHERE request_id = old.request_id;
END;
"""
_NOTE = f"""
INSERT INTO journal (request_id, before, level, {_EVENT})
SELECT request_id, ?, ?, {_EVENT} FROM events WHERE request_id = ?
"""
_READ = f"""
SELECT seq, before, level, request_id, {_EVENT} FROM journal
WHERE seq > ? AND timestamp_ms > ? ORDER BY seq LIMIT ?
"""
_SEARCHES = """
SELECT user_id, query, timestamp_ms FROM events WHERE user_id != '' AND timestamp_ms <= ?
ORDER BY timestamp_ms, rowid
"""


class Counted(NamedTuple):
    """A row of the journal: a new event if `before` is 0, else a rise of its level from `before`;
    `level` 0: not trusted.
    """

    seq: int
    before: int
    level: int
    request_id: str
    user_id: str
    session_id: str
    timestamp_ms: int
    prefix: str
    query: str
    shown: str  # JSON


def now_ms() -> int:
    """The time of events, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def note(connection: sqlite3.Connection, request_id: str, before: int, level: int) -> None:
    """Adds a row for a stored event inside a transaction."""
    connection.execute(_NOTE, (before, level, request_id))


def read(connection: sqlite3.Connection, after: int, since_ms: int, most: int) -> list[Counted]:
    """At most `most` rows after row `after` with events later than `since_ms`, in order."""
    return [*map(Counted._make, connection.execute(_READ, (after, since_ms, most)))]


def searches(connection: sqlite3.Connection, until_ms: int) -> Iterator[tuple[str, str, int]]:
    """User, query and time of all searches with a user up to a time, oldest first."""
    yield from map(tuple, connection.execute(_SEARCHES, (until_ms,)))
