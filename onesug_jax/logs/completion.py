"""Most popular completion: the indexed queries that start with the prefix, most searched first.

It is a baseline, the context of a request before related queries exist, and the last degradation
level of a service under load. So it depends on numpy alone, loads by memory map, and answers in
microseconds. The match is exact, code point by code point: `logs.schema` has normalised the text,
and typing errors are not corrected. A prefix that no query starts with has an empty list.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import require_files
from onesug_jax.logs.asof.completions import best
from onesug_jax.logs.texts import Texts, encode

_TEXT, _OFFSETS, _COUNTS = "queries.txt", "offsets.npy", "counts.npy"
_SMALL_RANGE = 256  # the rankings of ranges of more queries are cached
_CACHED = 65_536  # most rankings in the cache


class CompletionIndex:
    """Distinct queries in code point order with their search counts.

    `queries`: N sorted texts; `counts`: [N] int64, all positive.
    """

    def __init__(self, queries: Texts, counts: np.ndarray):
        self.queries, self.counts = queries, counts
        self._ranked = functools.lru_cache(maxsize=_CACHED)(self._rank)

    @classmethod
    def from_counts(cls, queries: Sequence[str], counts: Sequence[int]) -> CompletionIndex:
        """Build from queries and counts. Counts of equal queries are summed; zeros are left out.

        Raises ValueError for a negative count, unequal lengths, or a query that is empty or has a
        line end.
        """
        if len(queries) != len(counts):
            raise ValueError(f"{len(queries)} queries but {len(counts)} counts")
        table: dict[bytes, int] = collections.defaultdict(int)
        for query, count in zip(queries, counts, strict=True):
            if count < 0:
                raise ValueError(f"query {query!r} has the negative count {count}")
            if not query or "\n" in query:
                raise ValueError(f"a query must be one line of text, found {query!r}")
            if count:
                table[encode(query)] += int(count)
        ordered = sorted(table)
        values = np.fromiter((table[text] for text in ordered), np.int64, len(ordered))
        return cls(Texts.of(ordered), values)

    def __len__(self) -> int:
        return len(self.counts)

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last number of the queries that start with `prefix`."""
        return self.queries.range(prefix)

    def starts(self, prefix: str) -> bool:
        """Whether any indexed query starts with `prefix` (a query starts with itself)."""
        return self.queries.starts(prefix)

    def following(self, prefix: str) -> set[str]:
        """The characters that follow `prefix` in the queries that start with it."""
        return set(self.queries.following(prefix))

    def find(self, query: str) -> int:
        """Number of `query` in `queries`, or -1 if it is unknown."""
        return self.queries.find(query)

    def count(self, query: str) -> int:
        """The search count of `query`; 0 for an unknown one."""
        number = self.find(query)
        return int(self.counts[number]) if number >= 0 else 0

    def complete(self, prefix: str, k: int) -> list[str]:
        """At most k queries that start with `prefix`, most searched first, ties in code point
        order.
        """
        return [self.queries[i] for i in self.top(prefix, k).tolist()] if k > 0 else []

    def top(self, prefix: str, k: int) -> np.ndarray:
        """Numbers [at most k] of the queries of `complete`; read-only, as they may be cached."""
        first, last = self.range(prefix)
        rank = self._rank if last - first <= _SMALL_RANGE else self._ranked
        return rank(first, last, k)

    def _rank(self, first: int, last: int, k: int) -> np.ndarray:
        """Numbers of the best k of queries[first:last]."""
        return best(np.asarray(self.counts[first:last]), k) + first

    def save(self, folder: str) -> None:
        """Write the queries (text, one a line) and two arrays into `folder`."""
        os.makedirs(folder, exist_ok=True)
        self.queries.save(os.path.join(folder, _TEXT), os.path.join(folder, _OFFSETS))
        np.save(os.path.join(folder, _COUNTS), self.counts)

    @classmethod
    def load(cls, folder: str) -> CompletionIndex:
        """Open a saved index by memory map; UserError if files are missing or damaged."""
        paths = [os.path.join(folder, name) for name in (_TEXT, _OFFSETS, _COUNTS)]
        require_files(paths, "a saved completion index", "make it again")
        try:
            queries = Texts.load(*paths[:2])
            counts = np.load(paths[2], mmap_mode="r", allow_pickle=False)
            if len(queries) != len(counts):
                raise ValueError(f"{len(counts)} counts, {len(queries)} queries")
        except ValueError as error:
            raise UserError(
                f"{folder}: the completion index is damaged ({error}); make it again"
            ) from error
        return cls(queries, counts)
