"""Users who asked to be deleted, and the logs that were exported before: what still holds them.

A user's events go at once, but exported logs lie where the operator wanted them, and a model has
learnt of them. The store remembers both: where exports were written, and which users are to be left
out of every later `update`, up to the moment of their wish. A user's name is stored as a hash with
a salt of this store, so the list of those who went names nobody.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from typing import NamedTuple

from onesug_jax.errors import UserError

TABLES = """
CREATE TABLE IF NOT EXISTS salt (value TEXT NOT NULL);
INSERT INTO salt SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM salt);
CREATE TABLE IF NOT EXISTS forgotten (person TEXT PRIMARY KEY, at_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS exports (path TEXT PRIMARY KEY, at_ms INTEGER NOT NULL);
"""


class Forgotten(NamedTuple):
    """Whom to leave out: `person` is sha256(salt + user_id) in hexadecimal digits; rows of that
    user up to `at_ms` are to go.
    """

    salt: str
    people: list[tuple[str, int]]


def forget(connection: sqlite3.Connection, user_id: str) -> int:
    """Deletes a user's events inside a transaction, and remembers that; how many they were."""
    salt = connection.execute("SELECT value FROM salt").fetchone()[0]
    person = hashlib.sha256((salt + user_id).encode()).hexdigest()
    connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (person, _now_ms()))
    return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount


def latest(connection: sqlite3.Connection) -> tuple | None:
    """What changes whenever a user is forgotten; None: nobody was."""
    found = connection.execute("SELECT rowid, at_ms FROM forgotten ORDER BY rowid DESC LIMIT 1")
    return found.fetchone()


def note_export(connection: sqlite3.Connection, path: str) -> None:
    """Remembers a file that events were exported to."""
    connection.execute(
        "INSERT OR REPLACE INTO exports VALUES (?, ?)", (os.path.abspath(path), _now_ms())
    )


def exports(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Exported files that are still there, and when each was written, milliseconds since 1970."""
    rows = connection.execute("SELECT path, at_ms FROM exports ORDER BY at_ms").fetchall()
    return [(path, at_ms) for path, at_ms in rows if os.path.exists(path)]


def read(path: str) -> Forgotten | None:
    """Whom the store at `path` wants left out; None: nobody, or there is no store.

    Raises:
      UserError: the store cannot be read: nobody could say whom to leave out.
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
            f"{path}: expected the feedback store, which says whose rows to leave out; {error}. "
            "Repair the file, or name another with --gin.FeedbackConfig.path=PATH"
        ) from None
    return Forgotten(salt[0], people) if people else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
