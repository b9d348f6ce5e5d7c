"""The queries that start with a prefix; queries may be added at any time.

The initial texts are one sorted block (a memory map if it was read from a file), in which the texts
of a prefix are a range. Texts added later, which are few, are in a separate list. For prefixes of
very many queries, `WidePrefixes` retains only a part of them.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.texts import Texts, encode

_ABOVE = "\U0010ffff"  # above every other character
_CACHED = 1 << 17  # texts whose numbers are cached


class Completions(Sequence):
    """Texts by number: 0 .. N - 1 are the places in `texts`, added texts have higher numbers.

    Args:
      texts: N distinct texts in code point order; `Texts` are shared, not copied.

    Attributes:
      initial: the texts given.
      number: text -> its number, -1 if it has none.
    """

    def __init__(self, texts: Sequence[str]):
        self.initial = texts if isinstance(texts, Texts) else Texts.of([encode(t) for t in texts])
        self._later: list[str] = []
        self._sorted: list[tuple[str, int]] = []  # the later texts and their numbers
        self._cache_numbers()

    def _cache_numbers(self) -> None:
        # The cache must not refer to this object: a reference cycle would stay in memory wherever
        # garbage collection skips long-lived objects.
        find = functools.partial(_find, self.initial, self._sorted)
        self.number = functools.lru_cache(_CACHED)(find)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cache_numbers()

    def __len__(self) -> int:
        return len(self.initial) + len(self._later)

    def __getitem__(self, number):
        size = len(self.initial)
        return self.initial[number] if number < size else self._later[number - size]

    @property
    def queries(self) -> Sequence[str]:
        """All texts, by number."""
        return self

    def add(self, text: str) -> int:
        """Add a new text; returns its number."""
        number = len(self)
        self._later.append(text)
        insort(self._sorted, (text, number))
        self.number.cache_clear()
        return number

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last number of the initial texts that start with `prefix`."""
        return self.initial.range(prefix)

    def starts(self, prefix: str) -> bool:
        """Whether any text starts with `prefix`; it need not exist yet."""
        at = bisect_left(self._sorted, (prefix, -1))
        later = at < len(self._sorted) and self._sorted[at][0].startswith(prefix)
        return later or self.initial.starts(prefix)

    def following(self, prefix: str) -> set[str]:
        """The characters that follow `prefix` in the texts that start with it."""
        later = {text[len(prefix) :][:1] for text, _ in self._added(prefix)} - {""}
        return later.union(self.initial.following(prefix))

    def _added(self, prefix: str) -> list[tuple[str, int]]:
        """The later texts that start with `prefix`, and their numbers, in order."""
        low = bisect_left(self._sorted, (prefix, -1))
        return self._sorted[low : bisect_left(self._sorted, (prefix + _ABOVE, -1), low)]

    def numbers(self, prefix: str) -> np.ndarray | slice:
        """Numbers of the texts that start with `prefix`, as an index into arrays by number."""
        first, last = self.range(prefix)
        later = [number for _, number in self._added(prefix)]
        if not later:
            return slice(first, last)
        return np.concatenate([np.arange(first, last), np.array(later, np.int64)])


def _find(initial: Texts, later: list[tuple[str, int]], text: str) -> int:
    at = bisect_left(later, (text, -1))
    if at < len(later) and later[at][0] == text:
        return later[at][1]
    return initial.find(text)


class WidePrefixes:
    """The completions with the highest counts, for prefixes that very many queries complete.

    A searched query becomes a member of each of its wide prefixes. When a prefix has more than
    twice `breadth` members, the lower half is removed; each returns with its next search. The
    members depend on the searches alone, not on the requests.

    Args:
      completions: all texts; a prefix is wide if more than twice `breadth` of them start with it.
      score: numbers [n], time -> their counts at that time [n].
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
            waiting += [prefix + letter for letter in completions.following(prefix)]

    def __len__(self) -> int:
        return len(self._members)

    def searched(self, text: str, number: int, time_ms: int) -> None:
        """Make a query a member of all wide prefixes that it starts with."""
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
        """The members, ascending; None if the prefix is not wide."""
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
            tied = chosen[scores[chosen] == least][: k - len(above)]
            chosen = np.sort(np.concatenate([above, tied]))
        return chosen[np.argsort(-scores[chosen], kind="stable")]
    return np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)]
