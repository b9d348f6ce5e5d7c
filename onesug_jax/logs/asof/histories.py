"""Every user's latest queries, H_u of the paper, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict


class Histories:
    """The latest distinct queries of users.

    Args:
      length: most queries of a user.
      users: most users; the one whose latest search is oldest is removed.
    """

    def __init__(self, length: int, users: int):
        self._length, self._users = length, users
        # For each user, lines of the latest query, its time, the query before, its time, ..: one
        # text takes half the memory of a table.
        self._lines: OrderedDict[str, str] = OrderedDict()

    def add(self, user: str, query: str, time_ms: int) -> None:
        """Record a search; a repeated query becomes the newest."""
        if not self._length:
            return
        before = self._lines.pop(user, "")
        if not before and len(self._lines) >= self._users:
            self._lines.popitem(last=False)
        if query in before or before.count("\n") >= 2 * self._length:
            lines = before.split("\n")
            pairs = zip(lines[:-1:2], lines[1::2], strict=True)
            others = [f"{text}\n{time}\n" for text, time in pairs if text != query]
            before = "".join(others[: self._length - 1])
        self._lines[user] = f"{query}\n{time_ms}\n{before}"

    def of(self, user: str) -> tuple[list[str], list[int]]:
        """A user's queries, newest first, and the time of the last search of each."""
        lines = self._lines.get(user, "").split("\n") if user else []
        return lines[:-1:2], [int(time) for time in lines[1::2]]

    def forget(self, user: str) -> None:
        """Remove a user."""
        self._lines.pop(user, None)
