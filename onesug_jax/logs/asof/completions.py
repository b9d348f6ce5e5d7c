"""Which queries start with a prefix, where queries may appear at any time.

The texts that were there at the start lie in one sorted block, by memory map where they were read
from a file, so those of a prefix are one range of it. Later ones, which are few, lie in a list of
their own. Prefixes of very many queries are looked at in part: see `WidePrefixes`.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.texts import Texts, encode

_ABOVE = "\U0010ffff"  # above every character that a text goes on with
_CACHED = 1 << 17  # texts whose numbers are cached


class Completions(Sequence):
    """Texts by number; numbers 0 .. N - 1 are the places in `texts`, later ones go on from there.

    Args:
      texts: N distinct texts in code point order; `Texts` are shared, not copied.

    Attributes:
      number: text -> its number, -1 if it has none.
    """

    def __init__(self, texts: Sequence[str]):
        self._first = texts if isinstance(texts, Texts) else Texts.of([encode(t) for t in texts])
        self._later: list[str] = []
        self._sorted: list[tuple[str, int]] = []  # the later ones and their numbers
        self.number = functools.lru_cache(_CACHED)(self._find)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.number = functools.lru_cache(_CACHED)(self._find)

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def __getitem__(self, number):
        size = len(self._first)
        return self._first[number] if number < size else self._later[number - size]

    @property
    def queries(self) -> Sequence[str]:
        """All texts, by number."""
        return self

    def add(self, text: str) -> int:
        """Adds a text that is not there yet; returns its number."""
        number = len(self)
        self._later.append(text)
        insort(self._sorted, (text, number))
        self.number.cache_clear()
        return number

    def _find(self, text: str) -> int:
        at = bisect_left(self._sorted, (text, -1))
        if at < len(self._sorted) and self._sorted[at][0] == text:
            return self._sorted[at][1]
        return self._first.find(text)

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last number of the first texts that start with `prefix`."""
        return self._first.range(prefix)

    def starts(self, prefix: str) -> bool:
        """Whether any text starts with `prefix`, visible or not."""
        at = bisect_left(self._sorted, (prefix, -1))
        later = at < len(self._sorted) and self._sorted[at][0].startswith(prefix)
        return later or self._first.starts(prefix)

    def numbers(self, prefix: str) -> np.ndarray | slice:
        """Numbers of the texts that start with `prefix`, as an index into arrays by number."""
        first, last = self.range(prefix)
        low = bisect_left(self._sorted, (prefix, -1))
        high = bisect_left(self._sorted, (prefix + _ABOVE, -1), low)
        if low == high:
            return slice(first, last)
        later = [number for _, number in self._sorted[low:high]]
        return np.concatenate([np.arange(first, last), np.array(later, np.int64)])


class WidePrefixes:
    """The most counted completions of prefixes that very many queries complete.

    Of each such prefix at least `breadth` queries are members. Whatever is searched becomes one;
    at twice as many, the half that counts least leaves until it is searched again. Which are
    members depends on the searches alone, not on what was asked.

    Args:
      completions: gives the prefixes that more than twice `breadth` texts start with.
      score: numbers [n], time -> how much each counts then [n].
    """

    def __init__(
        self,
        completions: Completions,
        breadth: int,
        score: Callable[[np.ndarray, float], np.ndarray],
    ):
        self._breadth, self._score = breadth, score
        self._members: dict[str, dict[int, None]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            first, last = completions.range(prefix)
            if last - first <= 2 * breadth:
                continue
            self._members[prefix] = {}
            while first < last:  # from one longer prefix to the next
                longer = completions[first][: len(prefix) + 1]
                if longer == prefix:
                    first += 1
                else:
                    waiting.append(longer)
                    first = completions.range(longer)[1]

    def __len__(self) -> int:
        return len(self._members)

    def searched(self, text: str, number: int, time_ms: int) -> None:
        """Makes a query a member of all wide prefixes that it starts with."""
        for size in range(len(text) + 1):
            members = self._members.get(text[:size])
            if members is None:
                return
            if number not in members:
                members[number] = None
                self._arrays.pop(text[:size], None)
                if len(members) > 2 * self._breadth:
                    numbers = np.fromiter(members, np.int64, len(members))
                    best = np.argsort(-self._score(numbers, time_ms), kind="stable")[
                        : self._breadth
                    ]
                    self._members[text[:size]] = dict.fromkeys(np.sort(numbers[best]).tolist())

    def numbers(self, prefix: str) -> np.ndarray | None:
        """The members, ascending; None where the prefix is not wide."""
        members = self._members.get(prefix)
        if members is None:
            return None
        if prefix not in self._arrays:
            self._arrays[prefix] = np.sort(np.fromiter(members, np.int64, len(members)))
        return self._arrays[prefix]


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places [at most k] of the highest scores above 0, highest first, ties by place."""
    if len(scores) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores > 0)
        if len(chosen) > k:
            above = chosen[scores[chosen] > least]
            level = chosen[scores[chosen] == least][: k - len(above)]
            chosen = np.sort(np.concatenate([above, level]))
        return chosen[np.argsort(-scores[chosen], kind="stable")]
    return np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)]
