"""The latest list shown for each prefix, in bounded memory.

People search for queries that they are shown, and a shop shows the same list to many people. So the
place of a candidate in the latest list of the prefix predicts whether it is seen (position bias).
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
      most: most prefixes in memory; the one shown longest ago is removed.
    """

    def __init__(self, most: int):
        self._most = most
        self._lists: OrderedDict[str, tuple[int, str]] = OrderedDict()  # a query a line

    def add(self, prefix: str, queries: Sequence[str], time_ms: int) -> None:
        """Record a list."""
        self._lists[prefix] = time_ms, "\n".join(queries)
        self._lists.move_to_end(prefix)
        if len(self._lists) > self._most:
            self._lists.popitem(last=False)

    def at(
        self,
        lists: Sequence[tuple[str, Sequence[int]]],
        number_of: Callable[[str], int],
        time_ms: float,
    ) -> np.ndarray:
        """SHOWN_COLUMNS `[n, 2]` of the query numbers of all (prefix, numbers), concatenated: 1 /
        place in the latest list of the prefix, or 0; and the same, halved for each day since then.

        `number_of`: query -> its number, -1 if it has none.
        """
        out = np.zeros((sum(len(numbers) for _, numbers in lists) + 1, len(SHOWN_COLUMNS)))
        cells = memoryview(out.data).cast("B").cast("d")  # faster than numpy for a few numbers
        start = 0
        for prefix, numbers in lists:
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
        """Move the times of all lists by `ms`."""
        for prefix, (time, queries) in self._lists.items():
            self._lists[prefix] = time + ms, queries

    def items(self) -> Iterator[tuple[str, tuple[int, list[str]]]]:
        """Each prefix with the time of its list in milliseconds and the queries in order."""
        for prefix, (time, queries) in self._lists.items():
            yield prefix, (time, queries.split("\n") if queries else [])
