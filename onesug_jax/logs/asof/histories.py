"""Every user's latest queries, H_u of the paper, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict


class Histories:
    """The latest distinct queries of users.

    Args:
      length: most queries of a user.
      users: most users; the one whose latest search is oldest makes room.
    """

    def __init__(self, length: int, users: int):
        self._length, self._users = length, users
        # Of a user the latest query, its time, the query before .., a line each: one text takes
        # half the memory of a table.
        self._of: OrderedDict[str, str] = OrderedDict()

    def add(self, user: str, query: str, time_ms: int) -> None:
        """Takes note of a search; a query that was there already is the newest now."""
        if not self._length:
            return
        before = self._of.pop(user, "")
        if not before and len(self._of) >= self._users:
            self._of.popitem(last=False)
        if query in before or before.count("\n") >= 2 * self._length:
            lines = before.split("\n")
            pairs = zip(lines[:-1:2], lines[1::2], strict=True)
            others = [f"{text}\n{time}\n" for text, time in pairs if text != query]
            before = "".join(others[: self._length - 1])
        self._of[user] = f"{query}\n{time_ms}\n{before}"

    def of(self, user: str) -> tuple[list[str], list[int]]:
        """A user's queries, newest first, and when each was last searched."""
        lines = self._of.get(user, "").split("\n") if user else []
        return lines[:-1:2], [int(time) for time in lines[1::2]]

    def forget(self, user: str) -> None:
        """Removes a user."""
        self._of.pop(user, None)
