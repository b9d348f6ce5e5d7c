"""A feedback store that is not there: suggestions live without it.

Where the file is damaged, locked or out of reach when the service starts, this stands in for it:
histories are empty, feedback is refused, and the counts stay those of the log.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future

from onesug_jax.serve.feedback import Busy, Event, FeedbackConfig, FeedbackStore


class AbsentStore(FeedbackStore):
    """See `FeedbackStore`; what it stores is nothing, and what it reads raises or is empty.

    Args:
      path, config: of the store that it stands in for.
      why: what is wrong with that store.
    """

    def __init__(self, path: str, config: FeedbackConfig, why: str):
        self.path, self.config, self._why = path, config, why

    def check(self) -> None:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def add(self, event: Event, *more, **settings) -> Future:
        """Raises Busy."""
        raise Busy("the store is down")

    def forget(self, user_id: str) -> Future:
        """Raises Busy."""
        raise Busy("the store is down")

    def probe(self) -> Future:
        """Raises Busy."""
        raise Busy("the store is down")

    def reader(self) -> sqlite3.Connection:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def history(self, user_id: str, most: int) -> dict[str, int]:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def count(self, *given, **settings) -> int:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def exports(self) -> list[tuple[str, int]]:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def export(self, path: str, *, profile: Sequence[str] = (), **settings) -> int:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    def close(self) -> None:
        """Nothing is open."""
