"""Corrections of a mistyped prefix: beginnings of queries one typing error away.

A prefix that no indexed query starts with often is the beginning of one with two letters swapped,
one inserted, one missing, or one wrong (Damerau 1964). The four kinds of error are assumed equally
likely, and so are all errors of one kind. A swap is therefore likelier than a missing letter: there
are fewer possible swaps.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onesug_jax.logs.asof.completions import Completions
    from onesug_jax.logs.completion import CompletionIndex

_LETTERS = 64  # most letters tried in one place, as some scripts have thousands
_SAMPLE = 20_000  # queries in which letters are counted


class Corrections:
    """Beginnings of indexed queries near a typed one.

    Args:
      completions: the indexed queries; the letters tried are those of their texts at this time.
    """

    def __init__(self, completions: CompletionIndex | Completions):
        self._completions = completions
        self._letters = _letters(completions.queries)

    def near(self, prefix: str) -> dict[str, float]:
        """Beginnings of indexed queries one error away -> likelihood, 1 for the likeliest."""
        likelihoods: dict[str, float] = {}
        for text, likelihood in self._errors(prefix):
            if text and text != prefix and likelihood > likelihoods.get(text, 0.0):
                if self._completions.starts(text):
                    likelihoods[text] = likelihood
        highest = max(likelihoods.values(), default=1.0)
        return {text: likelihood / highest for text, likelihood in likelihoods.items()}

    def _errors(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Texts one typing error away, and the likelihood of each error."""
        size, letters = len(prefix), self._letters
        if size < 2:
            return
        # The part before an error is correct, so an error is not after the longest beginning that
        # some query starts with.
        right = 0
        while right < size and self._completions.starts(prefix[: right + 1]):
            right += 1
        for i in range(min(size - 1, right + 1)):
            yield prefix[:i] + prefix[i + 1] + prefix[i] + prefix[i + 2 :], 1 / (size - 1)
        for i in range(min(size, right + 1)):
            yield prefix[:i] + prefix[i + 1 :], 1 / size
        for i in range(right + 1):
            for letter in sorted(letters & self._completions.following(prefix[:i])):
                start = prefix[:i] + letter
                yield start + prefix[i:], 1 / ((size + 1) * len(letters))
                yield start + prefix[i + 1 :], 1 / (size * len(letters))


def _letters(queries: Sequence[str]) -> frozenset[str]:
    """The most frequent letters of the queries."""
    step = max(len(queries) // _SAMPLE, 1)
    counts: collections.Counter[str] = collections.Counter()
    for number in range(0, len(queries), step):
        counts.update(queries[number])
    return frozenset(letter for letter, _ in counts.most_common(_LETTERS))


def completed(
    meant: Mapping[str, float], complete: Callable[[str], tuple[np.ndarray, np.ndarray]], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Queries that start with a correction, by their counts times its likelihood.

    Args:
      meant: the corrections, from `Corrections.near`.
      complete: beginning -> numbers of the queries that start with it, and their counts, `[n]`.
      most: most queries.

    Returns:
      numbers and weights `[m]`, best first, ties by number.
    """
    weights: dict[int, float] = {}
    for text, likelihood in meant.items():
        for number, count in zip(*complete(text), strict=True):
            weights[int(number)] = max(weights.get(int(number), 0.0), likelihood * float(count))
    best = sorted(weights, key=lambda number: (-weights[number], number))[:most]
    return np.array(best, np.int64), np.array([weights[number] for number in best])
