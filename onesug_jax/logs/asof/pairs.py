"""Decayed counts of (prefix, query) pairs and of prefixes, in bounded memory.

They tell which queries follow a prefix. The pair of a prefix and `ANY` counts all of its searches.
Long prefixes make pairs that occur once; when the table is full, the quarter with the lowest counts
is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from onesug_jax.logs.asof.counts import DecayedCounts

ANY = -1  # in place of a query's number: all queries
_NOTHING: dict[int, int] = {}


class PairCounts:
    """Counts of the searches of each query after each prefix, at K half-lives.

    Args:
      half_lives_days: as `DecayedCounts`.
      most: most pairs in memory.

    Attributes:
      left: the number of pairs removed so far.
    """

    def __init__(self, half_lives_days: Sequence[float | None], most: int):
        self._counts = DecayedCounts(half_lives_days)
        self._most = most
        self._rows: dict[str, dict[int, int]] = {}  # prefix -> query -> row of the counts
        self._size = 0
        self.left = 0

    def __len__(self) -> int:
        return self._size

    def add(self, prefix: str, query: int, time_ms: int) -> None:
        """Count a search."""
        queries = self._rows.get(prefix)
        row = None if queries is None else queries.get(query)
        if row is None:
            if self._size >= self._most:
                self._make_room(time_ms)
            row = self._size
            self._size += 1
            self._counts.reserve(self._size + 1)
            self._rows.setdefault(prefix, {})[query] = row
        self._counts.add(row, time_ms)

    def at(self, lists: Sequence[tuple[str, Sequence[int]]], time_ms: float) -> np.ndarray:
        """The counts at that time of all (prefix, queries), concatenated: `[n, K]`; 0 for an unseen
        pair.
        """
        rows: list[int] = []
        for prefix, queries in lists:
            row_of = self._rows.get(prefix, _NOTHING).get
            rows += map(row_of, queries, itertools.repeat(-1))  # the last row has counts 0
        return self._counts.at(np.array(rows, np.int64), time_ms)

    def postpone(self, ms: int) -> None:
        """Move the times of all searches by `ms`."""
        self._counts.reference += ms

    def _make_room(self, time_ms: int) -> None:
        """Remove the quarter with the lowest sums of counts over all half-lives."""
        stored = self._counts.stored[: self._size]
        score = (stored * self._counts.factors(time_ms)).sum(1)
        retained = np.zeros(self._size, bool)
        retained[np.argsort(score, kind="stable")[self._size // 4 + 1 :]] = True
        new_row = np.where(retained, np.cumsum(retained) - 1, -1).tolist()
        rows = {}
        for prefix, queries in self._rows.items():
            remaining = {q: new_row[row] for q, row in queries.items() if new_row[row] >= 0}
            if remaining:
                rows[prefix] = remaining
        size = int(retained.sum())
        self.left += self._size - size
        stored[:size] = stored[retained]
        stored[size:] = 0
        self._rows, self._size = rows, size

    def to_arrays(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """The prefixes, and for each pair the place of its prefix, its query and stored counts."""
        pairs = [(place, q) for place, qs in enumerate(self._rows.values()) for q in qs]
        rows = [row for queries in self._rows.values() for row in queries.values()]
        places, queries = np.array(pairs, np.int64).reshape(-1, 2).T
        arrays = {"pair_prefix": places, "pair_query": queries}
        stored = self._counts.stored[np.array(rows, np.int64)]
        reference = np.array(self._counts.reference)
        return list(self._rows), arrays | {"pair_stored": stored, "pair_reference": reference}

    def from_arrays(self, prefixes: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
        """Restore the output of `to_arrays`."""
        places, queries = arrays["pair_prefix"].tolist(), arrays["pair_query"].tolist()
        for row, (place, query) in enumerate(zip(places, queries, strict=True)):
            self._rows.setdefault(prefixes[place], {})[query] = row
        self._size = len(places)
        self._counts.restore(np.array(arrays["pair_stored"]), float(arrays["pair_reference"]))
        self._counts.reserve(max(self._size + 1, 1024))
