"""The events of the feedback store as rows: one is a suggestion request and its outcome.

The columns are those of the log (`logs.schema`), with lists as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Mapping, Sequence

from onesug_jax.logs.schema import request_level
from onesug_jax.serve import forgotten, journal
from onesug_jax.serve.export import LISTS, OWN

VERSION = 5  # of the tables
TABLES = f"""
CREATE TABLE IF NOT EXISTS events (
  request_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, session_id TEXT NOT NULL,
  timestamp_ms INTEGER NOT NULL, prefix TEXT NOT NULL, shown TEXT NOT NULL, query TEXT NOT NULL,
  clicked_position INTEGER, clicked_items TEXT NOT NULL, ordered_items TEXT NOT NULL,
  profile TEXT NOT NULL, history TEXT, history_minutes TEXT, trusted INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_user ON events (user_id, timestamp_ms);
CREATE INDEX IF NOT EXISTS by_time ON events (timestamp_ms);
{journal.TABLES}
{forgotten.TABLES}
PRAGMA user_version = {VERSION};
"""
_ITEMS = ("clicked_items", "ordered_items")


@dataclasses.dataclass(frozen=True)
class Event:
    """One request and its outcome; texts are normalised by `logs.schema`.

    Attributes are the log's columns. `query` is "" if the event adds to an existing request;
    `profile` is name -> value; `history`, oldest first, and `history_minutes` are those that the
    client sent, else None.
    """

    request_id: str
    user_id: str = ""
    session_id: str = ""
    timestamp_ms: int = 0
    prefix: str = ""
    shown: Sequence[str] = ()
    query: str = ""
    clicked_position: int | None = None
    clicked_items: Sequence[str] = ()
    ordered_items: Sequence[str] = ()
    profile: Mapping[str, str] = dataclasses.field(default_factory=dict)
    history: Sequence[str] | None = None
    history_minutes: Sequence[float] | None = None


class Conflict(Exception):
    """An event contradicts the stored one with its request_id, in `field`."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Unknown(Exception):
    """An event adds to a request that is not stored."""


def put(connection: sqlite3.Connection, event: Event, trusted: bool) -> str:
    """Stores an event, or its new items, inside a transaction: "new", "more" or "same"."""
    stored = connection.execute(
        "SELECT * FROM events WHERE request_id = ?", (event.request_id,)
    ).fetchone()
    if stored is None:
        if not event.query:
            raise Unknown(f"no request {event.request_id!r} is stored yet")
        row = {**dataclasses.asdict(event), "trusted": trusted}
        for name in (*LISTS, "profile"):
            row[name] = _json(row[name])
        for name in OWN:
            row[name] = None if row[name] is None else _json(row[name])
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT INTO events ({names}) VALUES ({places})", row)
        level = request_level(event.clicked_items, event.ordered_items)
        if trusted or event.user_id:
            journal.note(connection, event.request_id, 0, level if trusted else 0)
        return "new"
    if stored["user_id"] != event.user_id:
        raise Conflict("user_id", "this request_id belongs to another user")
    if event.query and event.query != stored["query"]:
        raise Conflict("query", "this request_id is stored with another query")
    before = {name: json.loads(stored[name]) for name in _ITEMS}
    after = {name: [*dict.fromkeys([*before[name], *getattr(event, name)])] for name in _ITEMS}
    if after == before:
        return "same"
    connection.execute(
        "UPDATE events SET clicked_items = ?, ordered_items = ? WHERE request_id = ?",
        (*map(_json, after.values()), event.request_id),
    )
    was, level = (request_level(*one.values()) for one in (before, after))
    if stored["trusted"] and level > was:
        journal.note(connection, event.request_id, was, level)
    return "more"


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False)
