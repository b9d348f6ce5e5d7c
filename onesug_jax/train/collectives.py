"""Bytes that a collective sends over the links of a slice, and over the network between slices.

    X                bytes of the whole array: the result, or n times the result of a reduce-scatter
    n, k             chips of a group, and their slices; m = n / k chips in each slice
    links            f X (m - 1) / m            f = 2 for an all-reduce, otherwise 1
    network          f X / m (k - 1) / k        each chip of a slice sends its m-th part

Rings run within the slices, and between slices among the chips with the same position. Devices are
numbered in the order of the mesh.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `KINDS`; bytes: of its result on a chip.
      groups: device numbers of each group; for a permute, pairs.
      times: the number of its runs.
      between: whether it runs between all slices, among the chips with the same position.
    """

    kind: str
    bytes: float
    groups: Groups
    times: float
    between: bool = False

    @property
    def group(self) -> int:
        """Chips of a group."""
        return max(map(len, self.groups), default=1)

    def sent(self, chips_per_slice: int | None = None, slices: int = 1) -> tuple[float, float]:
        """Bytes that a chip sends in all runs, over links and over the network between slices.

        Args:
          chips_per_slice: None if all chips are in one slice.
        """
        n, k = self.group, 1
        if self.between:
            n = k = slices
        elif chips_per_slice is not None:
            k = max((len({i // chips_per_slice for i in g}) for g in self.groups), default=1)
        m, total = n / k, self.bytes * self.times
        if self.kind in ("collective-permute", "collective-broadcast"):
            return (total, 0.0) if k == 1 else (0.0, total)
        if self.kind == "all-to-all":
            return total * (m - 1) / n, total * (k - 1) / k
        if self.kind == "reduce-scatter":
            total *= n
        if self.kind == "all-reduce":
            total *= 2
        return total * (m - 1) / m, total / m * (k - 1) / k

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of the mesh along which the devices of its groups differ."""
        if self.between:
            return ("replica",)
        if not self.groups:
            return ()
        positions = np.array(np.unravel_index(self.groups[0], tuple(mesh.values())))
        vary = (positions != positions[:, :1]).any(axis=1)
        return tuple(name for name, differs in zip(mesh, vary, strict=True) if differs)


def parse_groups(attributes: str) -> Groups:
    """The groups of a collective, from its attributes in HLO text; () if there are none.

    HLO writes lists, `{{0,1},{2,3}}`; reshaped and transposed numbers, `[2,4]<=[4,2]T(1,0)`; or
    axes of a mesh, `mesh['a'=4,'b'=2] {'a'}`, whose devices may be reordered,
    `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        numbers = _numbered(_integers(iota[3]), _integers(iota[4] or ""))
        return _as_groups(numbers.reshape(int(iota[1]), int(iota[2])))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^{}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        along = re.findall(r"'(\w+)'", mesh[2])
        order = [i for i, name in enumerate(sizes) if name not in along]
        order += [list(sizes).index(name) for name in along]
        ids = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", attributes)
        shape = tuple(sizes.values())
        numbers = _numbered(_integers(ids[1]), _integers(ids[2] or "")) if ids else _numbered(shape)
        numbers = numbers.reshape(shape).transpose(order)
        group = int(np.prod([sizes[name] for name in along]))
        return _as_groups(numbers.reshape(-1, group))
    return ()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _numbered(shape: tuple[int, ...], order: tuple[int, ...] = ()) -> np.ndarray:
    """0, 1, 2 ... in an array of this shape, transposed to this order of dimensions."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(order or range(len(shape)))


def _as_groups(numbers: np.ndarray) -> Groups:
    return tuple(map(tuple, numbers.tolist()))
