"""The few shapes that batches are padded to, so that few programs are compiled."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

_LENGTH_STEP = 32  # input lengths are rounded up to multiples of this
_LEAST_FULL = 8  # batches below this size are always padded to the next size


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that batches are padded to, each ascending.

    Attributes:
      batch_sizes: numbers of requests.
      lengths: numbers of ids; the last one is the longest input.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch_sizes: Sequence[int], longest: int) -> Shapes:
        """Inputs of at most `longest` ids, rounded up to multiples of 32."""
        return cls(tuple(batch_sizes), (*range(_LENGTH_STEP, longest, _LENGTH_STEP), longest))

    def next_batch(self, waiting: int) -> int:
        """The number of waiting requests in the next batch.

        Nine requests run as eight and one, not as a batch of 32 that is mostly padding.
        """
        full = [size for size in self.batch_sizes if size <= waiting]
        if len(full) == len(self.batch_sizes):
            return full[-1]
        padded = self.batch_sizes[len(full)]
        if full and full[-1] >= _LEAST_FULL and 2 * waiting < padded:
            return full[-1]
        return waiting


def least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that is at least `wanted`."""
    return sizes[bisect.bisect_left(sizes, wanted)]


def batches_of(needed: Sequence[int], batch_sizes: Sequence[int]) -> list[list[int]]:
    """Groups requests of sizes `needed` into batches of indices, the smallest requests first.

    A batch has the shape of its largest request. It is extended to a larger one of `batch_sizes`
    only if requests of that shape fill half of it. Then smaller requests take the other rows, which
    would be padding otherwise.
    """
    order = sorted(range(len(needed)), key=needed.__getitem__, reverse=True)
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        largest, end = needed[order[start]], start + 1
        while end < len(order) and needed[order[end]] == largest:
            end += 1
        above = bisect.bisect_left(batch_sizes, end - start + 1)
        extended = above < len(batch_sizes) and batch_sizes[above] <= 2 * (end - start)
        count = batch_sizes[above if extended else max(above - 1, 0)]
        batches.append(order[start : start + count])
        start += count
    return batches[::-1]
