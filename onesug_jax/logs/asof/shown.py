"""The list that was shown last for each prefix, in bounded memory.

People search for what they are shown, and shops show the same list to many: the place of a
candidate in the latest list of its prefix says how likely it is seen again (position bias).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onesug_jax.logs.asof.config import DAY_MS, SHOWN_COLUMNS


class ShownLists:
    """The latest list of each prefix.

    Args:
      most: most prefixes in memory; the one shown longest ago makes room.
    """

    def __init__(self, most: int):
        self._most = most
        self._lists: OrderedDict[str, tuple[int, str]] = OrderedDict()  # a query a line

    def add(self, prefix: str, queries: Sequence[str], time_ms: int) -> None:
        """Takes note of a list."""
        self._lists[prefix] = time_ms, "\n".join(queries)
        self._lists.move_to_end(prefix)
        if len(self._lists) > self._most:
            self._lists.popitem(last=False)

    def at(
        self,
        asked: Sequence[tuple[str, Sequence[int]]],
        number_of: Callable[[str], int],
        time_ms: float,
    ) -> np.ndarray:
        """SHOWN_COLUMNS of query numbers, of each (prefix, numbers) after another, `[n, 2]`: 1 /
        place in the prefix's latest list, 0 for what it lacks; and the same, halved for each day
        since it was shown.

        `number_of` gives the number of a query, -1 if it has none.
        """
        out = np.zeros((sum(len(numbers) for _, numbers in asked) + 1, len(SHOWN_COLUMNS)))
        cells = memoryview(out.data).cast("B").cast("d")  # a few numbers cost more as an array
        start = 0
        for prefix, numbers in asked:
            time, queries = self._lists.get(prefix, (0, ""))
            if queries:
                row_of = dict(zip(numbers, itertools.count(start), strict=False))
                fresh = 0.5 ** (max(time_ms - time, 0) / DAY_MS)
                for place, query in enumerate(queries.split("\n"), 1):
                    row = row_of.get(number_of(query))
                    if row is not None:
                        cells[2 * row], cells[2 * row + 1] = 1 / place, fresh / place
            start += len(numbers)
        return out[:start]

    def postpone(self, ms: int) -> None:
        """Takes all lists as if they had been shown so much later."""
        for prefix, (time, queries) in self._lists.items():
            self._lists[prefix] = time + ms, queries

    def items(self) -> Iterator[tuple[str, tuple[int, list[str]]]]:
        """Each prefix with its time in milliseconds and its queries in order."""
        for prefix, (time, queries) in self._lists.items():
            yield prefix, (time, queries.split("\n") if queries else [])
