"""Every user's latest queries, H_u of the paper, in bounded memory."""

from __future__ import annotations


class Histories:
    """The latest distinct queries of users.

    Args:
      length: most queries of a user.
      users: most users; the one whose latest search is oldest makes room.
    """

    def __init__(self, length: int, users: int):
        self._length, self._users = length, users
        self._of: dict[str, dict[str, int]] = {}  # query -> latest time, oldest first

    def add(self, user: str, query: str, time_ms: int) -> None:
        """Takes note of a search; a query that was there already is the newest now."""
        queries = self._of.pop(user, None)
        if queries is None:
            queries = {}
            if len(self._of) >= self._users:
                del self._of[next(iter(self._of))]
        self._of[user] = queries
        queries.pop(query, None)
        queries[query] = time_ms
        if len(queries) > self._length:
            del queries[next(iter(queries))]

    def of(self, user: str) -> tuple[list[str], list[int]]:
        """A user's queries, newest first, and when each was last searched."""
        queries = self._of.get(user)
        if not user or queries is None:
            return [], []
        return [*reversed(queries)], [*reversed(queries.values())]

    def forget(self, user: str) -> None:
        """Removes a user."""
        self._of.pop(user, None)
