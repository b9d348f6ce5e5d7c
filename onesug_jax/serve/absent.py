"""A feedback store that is not there: suggestions live without it.

Where the file is damaged, locked or out of reach when the service starts, this stands in for it:
histories are empty, feedback is refused, and the counts stay those of the log.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NoReturn

from onesug_jax.serve.feedback import FeedbackConfig, FeedbackStore


class AbsentStore(FeedbackStore):
    """See `FeedbackStore`; whatever it is asked raises sqlite3.OperationalError.

    Args:
      path, config: of the store that it stands in for.
      why: what is wrong with that store.
    """

    def __init__(self, path: str, config: FeedbackConfig, why: str):
        self.path, self.config, self._why = path, config, why

    def check(self, *given: Any, **settings: Any) -> NoReturn:
        """Raises sqlite3.OperationalError."""
        raise sqlite3.OperationalError(self._why)

    add = forget = probe = reader = history = count = exports = export = check

    def close(self) -> None:
        """Nothing is open."""
