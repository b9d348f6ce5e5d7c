"""How long ago a query was searched, in a few grades: which of a history are of this very visit.

People who come back for another thing bring their taste along; people who have searched a minute
ago are still after the same thing. The text of a query does not tell which it is, its age does.
Ages are minutes before the request; queries whose time nobody knows count as searched just now, as
those are that a page sends along with a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BOUNDS = (5.0, 30.0, 120.0, 1440.0, 10080.0)  # minutes: a grade ends at each
GRADES = len(BOUNDS) + 1
_VISIT = 10.0  # minutes after which a query counts half as one of this visit


def ages(minutes: Sequence[float], count: int) -> np.ndarray:
    """The ages of `count` queries, float64 `[count]`; zeros where `minutes` is empty.

    Raises:
      ValueError: there are ages, but fewer than queries.
    """
    if not len(minutes):
        return np.zeros(count)
    if len(minutes) < count:
        raise ValueError(f"{count} queries with {len(minutes)} ages")
    return np.asarray(minutes[:count], np.float64)


def grade(minutes: Sequence[float], count: int) -> list[int]:
    """The grades, 0 to GRADES - 1, of the ages of `count` queries."""
    return np.searchsorted(BOUNDS, ages(minutes, count), side="left").tolist()


def of_visit(minutes: np.ndarray) -> np.ndarray:
    """How much queries of ages `[..]` count as of this visit, 1 to 0: 2^(-minutes / 10)."""
    return np.exp2(-minutes / _VISIT)
