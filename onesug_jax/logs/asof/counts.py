"""Exponentially decayed counts at several half-lives, exact in one pass.

A count at time t is the sum over its events of 2^(-(t - event's time) / half-life). The sum is
stored at a fixed reference time, so an event is one addition and stored sums need no decay:

    stored   = sum over events of 2^((event - reference) / half-life)
    count(t) = stored * 2^((reference - t) / half-life)

The reference moves along a fixed grid, so that no stored number overflows, and two passes over the
same events store the same numbers. An event adds a few Python floats in place, which is faster than
an array of so few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.config import DAY_MS

_HALVINGS = 256  # of the shortest half-life between two references


class DecayedCounts:
    """Counts of rows 0, 1, .. at K half-lives, 0 at first.

    Args:
      half_lives_days: K half-lives; None: no decay.
      rows: the initial capacity, which is doubled where needed.

    Attributes:
      stored: [capacity, K] float64, as above; changed in place, replaced by `restore` only.
    """

    def __init__(self, half_lives_days: Sequence[float | None], rows: int = 1024):
        self.half_lives_days = tuple(half_lives_days)
        periods = [DAY_MS * h for h in self.half_lives_days if h is not None]
        self._rates = np.array(
            [0.0 if h is None else 1 / (DAY_MS * h) for h in self.half_lives_days]
        )
        self._rate_list = self._rates.tolist()
        self._period = _HALVINGS * min(periods, default=math.inf)
        self.restore(np.zeros((max(rows, 1), len(self._rates))), 0.0)

    def restore(self, stored: np.ndarray, reference: float) -> None:
        """Continue from stored counts [capacity, K] and their reference."""
        self.stored, self.reference = np.ascontiguousarray(stored, np.float64), reference
        self._cells = memoryview(self.stored.data).cast("B").cast("d")  # flat

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_cells"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.restore(self.stored, self.reference)

    def reserve(self, rows: int) -> None:
        """Ensure a capacity of `rows` rows."""
        size = len(self.stored)
        if rows > size:
            zeros = np.zeros((max(rows, 2 * size) - size, self.stored.shape[1]))
            self.restore(np.concatenate([self.stored, zeros]), self.reference)

    def add(self, row: int, time_ms: int) -> None:
        """Count an event of that time in an existing row."""
        if time_ms - self.reference >= self._period:
            self._move_reference(time_ms)
        since, cells, cell = time_ms - self.reference, self._cells, row * len(self._rate_list)
        for rate in self._rate_list:
            cells[cell] += 2.0 ** (since * rate)
            cell += 1

    def _move_reference(self, time_ms: int) -> None:
        """Move the reference to the last point of the grid up to `time_ms`."""
        reference = time_ms // self._period * self._period
        self.stored *= np.exp2((self.reference - reference) * self._rates)
        self.reference = reference

    def factors(self, time_ms: float) -> np.ndarray:
        """[K], the factors of `stored` that give the counts at that time."""
        return np.exp2((self.reference - time_ms) * self._rates)

    def at(self, rows: np.ndarray, time_ms: float) -> np.ndarray:
        """The counts [n, K] of rows at that time."""
        return self.stored.take(rows, axis=0) * self.factors(time_ms)
