"""Deleted users, and exported logs that may still contain them.

A deletion removes a user's events from the store at once, but exported logs and trained models
remain. So the store records the paths of exports, and the users whose earlier rows every later
`update` leaves out. It stores the salted hash of a deleted user's id, not the id.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from typing import NamedTuple

from onesug_jax.errors import UserError
from onesug_jax.serve.journal import now_ms

TABLES = """
CREATE TABLE IF NOT EXISTS salt (value TEXT NOT NULL);
INSERT INTO salt SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM salt);
CREATE TABLE IF NOT EXISTS forgotten (person TEXT PRIMARY KEY, at_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS exports (path TEXT PRIMARY KEY, at_ms INTEGER NOT NULL);
"""


class Forgotten(NamedTuple):
    """Users to leave out: (sha256(salt + user_id) in hexadecimal digits, time in ms of the last
    row to leave out).
    """

    salt: str
    people: list[tuple[str, int]]


def forget(connection: sqlite3.Connection, user_id: str) -> int:
    """Deletes a user's events inside a transaction and records it; returns their number."""
    salt = connection.execute("SELECT value FROM salt").fetchone()[0]
    person = hashlib.sha256((salt + user_id).encode()).hexdigest()
    connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (person, now_ms()))
    return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount


def latest(connection: sqlite3.Connection) -> tuple | None:
    """A value that changes with every deletion; None: there was none."""
    rows = connection.execute("SELECT rowid, at_ms FROM forgotten ORDER BY rowid DESC LIMIT 1")
    return rows.fetchone()


def note_export(connection: sqlite3.Connection, path: str) -> None:
    """Records the path of an export."""
    connection.execute(
        "INSERT OR REPLACE INTO exports VALUES (?, ?)", (os.path.abspath(path), now_ms())
    )


def exports(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Paths of existing exports, and when each was written, in milliseconds since 1970."""
    rows = connection.execute("SELECT path, at_ms FROM exports ORDER BY at_ms").fetchall()
    return [(path, at_ms) for path, at_ms in rows if os.path.exists(path)]


def read(path: str) -> Forgotten | None:
    """The deleted users of the store at `path`; None: there are none, or there is no store.

    Raises:
      UserError: the store cannot be read.
    """
    if not os.path.exists(path):
        return None
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if ("forgotten",) not in names.fetchall():
                return None
            people = connection.execute("SELECT person, at_ms FROM forgotten").fetchall()
            salt = connection.execute("SELECT value FROM salt").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: expected the feedback store, which lists the deleted users; {error}. "
            "Repair the file, or name another with --gin.FeedbackConfig.path=PATH"
        ) from None
    return Forgotten(salt[0], people) if people else None
