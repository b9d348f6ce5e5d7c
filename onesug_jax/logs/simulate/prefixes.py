"""The text in the search box: the query's beginning, sometimes with two letters swapped.

Random prefixes, and the probability of a prefix given a query, come from the same tables.
"""

from __future__ import annotations

import bisect

import numpy as np

from onesug_jax.logs.simulate.world import World

_LAST = chr(0x10FFFF)  # sorts after every other character
_ONWARD = 0.10  # share of people who continue typing, perhaps to the end
_MEANS = (4.0, 1.4)  # approximate number of characters typed: of small and of large alphabets


class Alphabet:
    """The queries in alphabetical order, so that the queries with one beginning are a range."""

    def __init__(self, texts: list[str]):
        self.order = np.array(sorted(range(len(texts)), key=texts.__getitem__))  # [Q]
        self._texts = sorted(texts)

    def ranges(self, beginnings: list[str]) -> np.ndarray:
        """First and one past last place in `order` of each beginning: [N, 2]."""
        texts, ranges = self._texts, {}
        for name in set(beginnings):
            first = bisect.bisect_left(texts, name)
            ranges[name] = first, bisect.bisect_left(texts, name + _LAST, first)
        return np.array([ranges[name] for name in beginnings], np.int64).reshape(-1, 2)


class Lengths:
    """Probabilities of the number of characters typed of a query: `table` [2, size + 1, length +
    1], of narrow and wide texts.
    """

    def __init__(self, longest: int):
        length = np.arange(1, longest + 1)
        table = np.zeros((2, longest + 1, longest + 1))
        for wide, mean in enumerate(_MEANS):
            chance = length**0.2 * np.exp(-1.2 * length / mean)
            short = np.cumsum(chance / chance.sum())  # probability of at most so many letters
            for size in length:
                onward = np.minimum(length / size, 1.0)  # the same for those who continue typing
                most = np.where(length < size, short * (1 - _ONWARD + _ONWARD * onward), 1.0)
                table[wide, size, 1:] = np.diff(most, prepend=0.0)
        self.table = table

    def draw(self, rng: np.random.Generator, wide: np.ndarray, size: np.ndarray) -> np.ndarray:
        """A random length for each query, 1 to its size: [N]."""
        most = np.cumsum(self.table, axis=2)
        return 1 + (rng.random(len(size))[:, None] >= most[wide.astype(int), size, 1:-1]).sum(1)


def draw_prefixes(
    rng: np.random.Generator, world: World, searched: np.ndarray, typo_share: float
) -> list[str]:
    """The prefix of each searched query."""
    lengths = Lengths(int(world.characters.max()))
    length = lengths.draw(rng, world.wide[searched], world.characters[searched])
    texts = world.queries
    prefixes = [texts[q][:n] for q, n in zip(searched.tolist(), length.tolist(), strict=True)]
    for row in np.flatnonzero((rng.random(len(prefixes)) < _tried(typo_share)) & (length >= 2)):
        at = int(rng.integers(0, length[row] - 1))
        prefixes[row] = _swapped(prefixes[row], at) or prefixes[row]
    return prefixes


def origins(prefix: str, typo_share: float) -> list[tuple[str, float]]:
    """The beginnings that may result in a prefix, each with the probability that it does."""
    if len(prefix) < 2 or not typo_share:
        return [(prefix, 1.0)]
    swaps = [text for at in range(len(prefix) - 1) if (text := _swapped(prefix, at))]
    chance = _tried(typo_share) / (len(prefix) - 1)
    return [(prefix, 1.0 - chance * len(swaps)), *((text, chance) for text in swaps)]


def _tried(typo_share: float) -> float:
    return 1.4 * typo_share  # some swaps are impossible, and a single letter has none


def _swapped(prefix: str, at: int) -> str | None:
    """The prefix with two neighbouring characters swapped; None if they are equal or a space."""
    a, b = prefix[at], prefix[at + 1]
    if a == b or " " in (a, b):
        return None
    return prefix[:at] + b + a + prefix[at + 2 :]
