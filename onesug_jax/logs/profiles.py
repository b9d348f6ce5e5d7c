"""How much likelier a query is among people of a profile than among all."""

from __future__ import annotations

import array
import os
from collections.abc import Iterable, Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write

FILE = "profiles.npz"
_SMOOTHING = 5.0  # searches of the average person that every profile value starts with


class ProfileCounts:
    """Searches of every known query by people of every profile value.

    Args:
      counts: int `[N]`, searches of each query in all.
      values: (place among the profile's columns, value) -> queries and how often each was searched
        by such people, int `[n]` each, in the order of the queries.
    """

    def __init__(
        self, counts: np.ndarray, values: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]
    ):
        self.counts, self._values = np.asarray(counts), values
        self._total = max(int(self.counts.sum()), 1)
        self._totals = {key: int(found.sum()) for key, (_, found) in values.items()}

    @classmethod
    def from_rows(cls, size: int, rows: Iterable[tuple[int, Sequence[str]]]) -> ProfileCounts:
        """Counts of rows (query number, or -1 for one that is not known; profile values)."""
        counts = np.zeros(size, np.int64)
        lists: dict[tuple[int, str], array.array] = {}
        for number, profile in rows:
            if number >= 0:
                counts[number] += 1
                for key in enumerate(profile):
                    lists.setdefault(key, array.array("q")).append(number)
        pairs = {key: np.unique(found, return_counts=True) for key, found in lists.items()}
        return cls(counts, pairs)

    def lift(self, numbers: np.ndarray, profile: Sequence[str], own: int = -1) -> np.ndarray:
        """Sum over the profile of `log P(q | value) / P(q)`, smoothed, of each query: `[n]`.

        Query `own` is counted once less, as a training row of this profile must.
        """
        lift = np.zeros(len(numbers))
        mine = (numbers == own).astype(float)
        share = (self.counts[numbers] - mine + 0.5) / self._total
        for key in enumerate(profile):
            if key not in self._values or not len(numbers):
                continue
            known, counts = self._values[key]
            at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
            found = np.where(known[at] == numbers, counts[at], 0) - mine
            found = np.maximum(found, 0)  # a row of another profile than counted
            total = self._totals[key] - (own >= 0)
            lift += np.log((found + _SMOOTHING * share) / ((total + _SMOOTHING) * share))
        return lift

    def save(self, folder: str) -> None:
        """Into folder/profiles.npz."""
        keys = sorted(self._values)
        numbers = [self._values[key][0] for key in keys]
        with atomic_write(os.path.join(folder, FILE)) as file:
            np.savez(
                file,
                counts=self.counts,
                places=np.array([place for place, _ in keys], np.int32),
                values=np.array([value for _, value in keys], dtype=np.str_),
                offsets=np.cumsum([0, *map(len, numbers)]),
                numbers=np.concatenate([*numbers, np.zeros(0, np.int64)]),
                searches=np.concatenate(
                    [*(self._values[key][1] for key in keys), np.zeros(0, np.int64)]
                ),
            )

    @classmethod
    def load(cls, folder: str, size: int) -> ProfileCounts:
        """Of `size` known queries. Raises UserError where it was made of others."""
        path = os.path.join(folder, FILE)
        with np.load(path) as saved:
            stored = {name: saved[name] for name in saved.files}
        if len(stored["counts"]) != size:
            raise UserError(
                f"{path} counts {len(stored['counts']):,} queries, {size:,} are known: run the "
                "rank stage again."
            )
        offsets = stored["offsets"]
        values = {
            (int(place), str(value)): (
                stored["numbers"][offsets[i] : offsets[i + 1]],
                stored["searches"][offsets[i] : offsets[i + 1]],
            )
            for i, (place, value) in enumerate(zip(stored["places"], stored["values"], strict=True))
        }
        return cls(stored["counts"], values)
