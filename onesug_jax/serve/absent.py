"""The replacement of a feedback store that cannot be opened, so that suggestions work without it.

It is used if the file is damaged, locked or unreachable when the service starts. Histories are
empty, feedback is refused, and the counts stay those of the log.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NoReturn

from onesug_jax.serve.feedback import FeedbackConfig, FeedbackStore


class AbsentStore(FeedbackStore):
    """A `FeedbackStore` whose methods all raise sqlite3.OperationalError.

    Args:
      path, config: those of the store that cannot be opened.
      why: the error of that store.
    """

    def __init__(self, path: str, config: FeedbackConfig, why: str):
        self.path, self.config, self._why = path, config, why

    def check(self, *args: Any, **settings: Any) -> NoReturn:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    add = forget = probe = reader = history = count = exports = export = check

    def close(self) -> None:
        """Nothing is open."""
