"""Beginnings one typing error away from what was typed.

A prefix that no indexed query starts with is often the beginning of one with two letters swapped,
one too many, one missing, or one wrong (Damerau 1964). Each kind of error is assumed equally
likely, and so is each error of one kind. So one of the few ways to swap neighbours is likelier than
one of the many ways to leave a letter out.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onesug_jax.logs.asof.completions import Completions
    from onesug_jax.logs.completion import CompletionIndex

_LETTERS = 64  # most letters tried in a place; scripts of thousands are not tried through
_SAMPLE = 20_000  # queries that the letters are taken from


class Corrections:
    """Beginnings of indexed queries near a typed one.

    Args:
      completions: the indexed queries; the letters tried are those they have now.
    """

    def __init__(self, completions: CompletionIndex | Completions):
        self._completions = completions
        self._letters = _letters(completions.queries)

    def near(self, prefix: str) -> dict[str, float]:
        """Beginnings of indexed queries one slip away: text -> how likely the slip, at most 1."""
        found: dict[str, float] = {}
        for text, share in self._slips(prefix):
            if text and text != prefix and share > found.get(text, 0.0):
                if self._completions.starts(text):
                    found[text] = share
        highest = max(found.values(), default=1.0)
        return {text: share / highest for text, share in found.items()}

    def _slips(self, prefix: str) -> Iterator[tuple[str, float]]:
        size, letters = len(prefix), self._letters
        if size < 2:
            return
        # What is before a slip is right, so slips after it has stopped beginning a query are none.
        right = 0
        while right < size and self._completions.starts(prefix[: right + 1]):
            right += 1
        for i in range(min(size - 1, right + 1)):
            yield prefix[:i] + prefix[i + 1] + prefix[i] + prefix[i + 2 :], 1 / (size - 1)
        for i in range(min(size, right + 1)):
            yield prefix[:i] + prefix[i + 1 :], 1 / size
        for i in range(right + 1):
            for letter in letters:
                begun = prefix[:i] + letter
                if self._completions.starts(begun):
                    yield begun + prefix[i:], 1 / ((size + 1) * len(letters))
                    yield begun + prefix[i + 1 :], 1 / (size * len(letters))


def _letters(queries: Sequence[str]) -> list[str]:
    """The most frequent letters of the queries."""
    step = max(len(queries) // _SAMPLE, 1)
    counts: collections.Counter[str] = collections.Counter()
    for number in range(0, len(queries), step):
        counts.update(queries[number])
    return sorted(letter for letter, _ in counts.most_common(_LETTERS))


def completed(
    meant: Mapping[str, float],
    complete: Callable[[str], tuple[np.ndarray, np.ndarray]],
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Queries that start with what may have been meant; a slip's probability weighs each count.

    Args:
      meant: from `Corrections.near`.
      complete: beginning -> numbers of the queries that start with it, and their counts, `[n]`.
      most: most queries.

    Returns:
      numbers and weights `[m]`, best first, ties by number.
    """
    weights: dict[int, float] = {}
    for text, share in meant.items():
        for number, count in zip(*complete(text), strict=True):
            weights[int(number)] = max(weights.get(int(number), 0.0), share * float(count))
    best = sorted(weights, key=lambda number: (-weights[number], number))[:most]
    return np.array(best, np.int64), np.array([weights[number] for number in best])
