"""The few shapes that batches are filled up to, so that few programs are compiled."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

_LENGTH_STEP = 32  # input lengths are rounded up to multiples of this
_WORTH_FILLING = 8  # smaller batches are rather filled up than added to


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that batches are filled up to, each ascending.

    Attributes:
      batch_sizes: requests.
      lengths: ids of a request, the last one the longest input.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch_sizes: Sequence[int], longest: int) -> Shapes:
        """Inputs of at most `longest` ids, rounded up to multiples of 32."""
        return cls(tuple(batch_sizes), (*range(_LENGTH_STEP, longest, _LENGTH_STEP), longest))

    def next_batch(self, waiting: int) -> int:
        """How many of the requests that wait are answered next.

        Nine are answered as eight and one, not as a batch of 32 that is mostly filling.
        """
        full = [size for size in self.batch_sizes if size <= waiting]
        if len(full) == len(self.batch_sizes):
            return full[-1]
        filled_up = self.batch_sizes[len(full)]
        if full and full[-1] >= _WORTH_FILLING and 2 * waiting < filled_up:
            return full[-1]
        return waiting


def least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that holds `wanted`."""
    return sizes[bisect.bisect_left(sizes, wanted)]
