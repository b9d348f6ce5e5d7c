"""Decayed counts of (prefix, query) pairs and of prefixes, in bounded memory.

They say which query people mean who type just this. The pair of a prefix and `ANY` counts all of
its searches. Long prefixes lead to pairs that are seen once; where the room ends, the quarter of
the pairs that counts least leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from onesug_jax.logs.asof.counts import DecayedCounts

ANY = -1  # in place of a query's number: whatever was searched after the prefix
_NOTHING: dict[int, int] = {}


class PairCounts:
    """Counts of the searches of each query after each prefix, at K half-lives.

    Args:
      half_lives_days: as `DecayedCounts`.
      most: most pairs in memory.

    Attributes:
      left: how many pairs have left to make room.
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
        """Counts a search of that time."""
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

    def at(self, asked: Sequence[tuple[str, Sequence[int]]], time_ms: float) -> np.ndarray:
        """The counts of queries after a prefix at that time, of each (prefix, queries) after
        another: `[n, K]`; 0 for an unseen pair.
        """
        rows: list[int] = []
        for prefix, queries in asked:
            row_of = self._rows.get(prefix, _NOTHING).get
            rows += map(row_of, queries, itertools.repeat(-1))  # the last row counts nothing
        return self._counts.at(np.array(rows, np.int64), time_ms)

    def postpone(self, ms: int) -> None:
        """Takes all searches as if they had happened so much later."""
        self._counts.reference += ms

    def _make_room(self, time_ms: int) -> None:
        """Drops the quarter that counts least: fewest decayed searches over all half-lives."""
        stored = self._counts.stored[: self._size]
        score = (stored * self._counts.factors(time_ms)).sum(1)
        stays = np.zeros(self._size, bool)
        stays[np.argsort(score, kind="stable")[self._size // 4 + 1 :]] = True
        moved = np.where(stays, np.cumsum(stays) - 1, -1).tolist()
        rows = {}
        for prefix, queries in self._rows.items():
            remaining = {q: moved[row] for q, row in queries.items() if moved[row] >= 0}
            if remaining:
                rows[prefix] = remaining
        size = int(stays.sum())
        self.left += self._size - size
        stored[:size] = stored[stays]
        stored[size:] = 0
        self._rows, self._size = rows, size

    def to_arrays(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """The prefixes, and of each pair its prefix's place, query and stored counts."""
        pairs = [(place, q) for place, qs in enumerate(self._rows.values()) for q in qs]
        rows = [row for queries in self._rows.values() for row in queries.values()]
        places, queries = np.array(pairs, np.int64).reshape(-1, 2).T
        arrays = {"pair_prefix": places, "pair_query": queries}
        stored = self._counts.stored[np.array(rows, np.int64)]
        reference = np.array(self._counts.reference)
        return list(self._rows), arrays | {"pair_stored": stored, "pair_reference": reference}

    def from_arrays(self, prefixes: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
        """Takes over what `to_arrays` gave."""
        places, queries = arrays["pair_prefix"].tolist(), arrays["pair_query"].tolist()
        for row, (place, query) in enumerate(zip(places, queries, strict=True)):
            self._rows.setdefault(prefixes[place], {})[query] = row
        self._size = len(places)
        self._counts.restore(np.array(arrays["pair_stored"]), float(arrays["pair_reference"]))
        self._counts.reserve(max(self._size + 1, 1024))
