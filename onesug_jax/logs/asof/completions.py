"""Which queries start with a prefix, where queries may appear at any time.

The texts that were there at the start lie in one sorted list, so those of a prefix are one range of
it. Later ones lie in a second, short list, which is merged into the first when it has grown.
Prefixes of very many queries are looked at in part: see `WidePrefixes`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

import numpy as np

_ABOVE = "\U0010ffff"  # above every character that a text goes on with
_LATE = 4096  # later queries before the lists are merged


class Completions:
    """Texts by number; numbers 0 .. N - 1 are the places in `texts`, later ones go on from there.

    Args:
      texts: N distinct texts in code point order.

    Attributes:
      queries: all texts, by number.
    """

    def __init__(self, texts: Sequence[str]):
        self.queries = list(texts)
        self._sorted = list(texts)
        self._numbers: np.ndarray | None = None  # of `_sorted`; None: their places
        self._late: list[tuple[str, int]] = []

    def add(self, text: str) -> int:
        """Adds a text that is not there yet; returns its number."""
        number = len(self.queries)
        self.queries.append(text)
        insort(self._late, (text, number))
        if len(self._late) > max(_LATE, len(self._sorted) // 16):
            self._merge()
        return number

    def _merge(self) -> None:
        numbers = self._numbers if self._numbers is not None else np.arange(len(self._sorted))
        both = [*zip(self._sorted, numbers.tolist(), strict=True), *self._late]
        both.sort()
        self._sorted = [text for text, _ in both]
        self._numbers = np.array([number for _, number in both])
        self._late = []

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last place in the first list of what starts with `prefix`."""
        first = bisect_left(self._sorted, prefix)
        return first, bisect_left(self._sorted, prefix + _ABOVE, first)

    def starts(self, prefix: str) -> bool:
        """Whether any text starts with `prefix`, visible or not."""
        at = bisect_left(self._sorted, prefix)
        if at < len(self._sorted) and self._sorted[at].startswith(prefix):
            return True
        at = bisect_left(self._late, (prefix, -1))
        return at < len(self._late) and self._late[at][0].startswith(prefix)

    def numbers(self, prefix: str) -> np.ndarray | slice:
        """Numbers of the texts that start with `prefix`, as an index into arrays by number."""
        first, last = self.range(prefix)
        late = []
        if self._late:
            low = bisect_left(self._late, (prefix, -1))
            high = bisect_left(self._late, (prefix + _ABOVE, -1), low)
            late = [number for _, number in self._late[low:high]]
        if self._numbers is None and not late:
            return slice(first, last)
        found = np.arange(first, last) if self._numbers is None else self._numbers[first:last]
        return np.concatenate([found, np.array(late, np.int64)]) if late else found


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
            texts = completions.queries[first:last]
            size = len(prefix)
            waiting += sorted({text[: size + 1] for text in texts if len(text) > size})

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
