"""The few shapes that batches are filled up to, so that few programs are compiled."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

LEAST_NODES = 64
_LENGTH_STEP = 32  # input lengths are rounded up to multiples of this
_NODES_AT_ONCE = 1 << 13  # of all trees of a batch
_WORTH_FILLING = 8  # smaller batches are rather filled up than added to


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that batches are filled up to, each ascending.

    Attributes:
      batch_sizes: requests. lengths: ids of a request, the last one the longest input.
      nodes: of the trees of candidates; candidates that the last one does not hold are left out.
        None: 64, 128, .. as many as it takes.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    nodes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, batch_sizes: Sequence[int], longest: int) -> Shapes:
        """Inputs of at most `longest` ids, rounded up to multiples of 32."""
        return cls(tuple(batch_sizes), (*range(_LENGTH_STEP, longest, _LENGTH_STEP), longest))

    def room(self, nodes: int) -> int:
        """How many nodes a tree of so many is filled up to."""
        if self.nodes:
            return least(self.nodes, nodes)
        room = LEAST_NODES
        while room < nodes:
            room *= 2
        return room

    def together(self, nodes: int, waiting: int) -> int:
        """How many of the requests that wait with trees of so many nodes are answered next.

        Nine are answered as eight and one, not as a batch of 32 that is mostly filling.
        """
        fitting = [size for size in self.batch_sizes if size * nodes <= _NODES_AT_ONCE]
        fitting = fitting or list(self.batch_sizes[:1])
        full = [size for size in fitting if size <= waiting]
        if len(full) == len(fitting):
            return full[-1]
        filled_up = fitting[len(full)]
        if full and full[-1] >= _WORTH_FILLING and 2 * waiting < filled_up:
            return full[-1]
        return waiting


def least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that holds `wanted`."""
    return sizes[bisect.bisect_left(sizes, wanted)]
