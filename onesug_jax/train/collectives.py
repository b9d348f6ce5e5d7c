"""What a collective sends: over the links of a slice, and over the network between slices.

    X                bytes of the whole array: of the result, of a reduce-scatter n times that
    n, k             chips of a group, and the slices that they lie in; m = n / k of them in each
    links            f X (m - 1) / m            f = 2 of an all-reduce, otherwise 1
    network          f X / m (k - 1) / k        what a ring leaves to each chip of a slice

Rings within the slices, and between them rings of the chips with the same place. Devices are
numbered as the mesh lists them. Knows the text of HLO's replica groups and nothing of models.
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
      groups: numbers of the devices that take part in it, group by group; of a permute, pairs.
      times: how often it runs.
      between: whether it is between all slices, among the chips with the same place in each.
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
        """Bytes a chip sends in all runs, over links and over the network between slices.

        Args:
          chips_per_slice: None: all chips lie in one slice.
        """
        n, k = self.group, 1
        if self.between:
            n = k = slices
        elif chips_per_slice is not None:
            k = max((len({i // chips_per_slice for i in g}) for g in self.groups), default=1)
        m, whole = n / k, self.bytes * self.times
        if self.kind in ("collective-permute", "collective-broadcast"):
            return (whole, 0.0) if k == 1 else (0.0, whole)
        if self.kind == "all-to-all":
            return whole * (m - 1) / n, whole * (k - 1) / k
        if self.kind == "reduce-scatter":
            whole *= n
        if self.kind == "all-reduce":
            whole *= 2
        return whole * (m - 1) / m, whole / m * (k - 1) / k

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of the mesh along which the devices of its groups differ."""
        if self.between:
            return ("replica",)
        if not self.groups:
            return ()
        places = np.array(np.unravel_index(self.groups[0], tuple(mesh.values())))
        vary = (places != places[:, :1]).any(axis=1)
        return tuple(name for name, differs in zip(mesh, vary, strict=True) if differs)


def parse_groups(attributes: str) -> Groups:
    """The groups of a collective, of its attributes in HLO's text; () where none are written.

    They are written out, `{{0,1},{2,3}}`; as reshaped and transposed numbers, `[2,4]<=[4,2]T(1,0)`;
    or as axes of a mesh, `mesh['a'=4,'b'=2] {'a'}`, of devices in order or in that of such numbers,
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
    """0, 1, 2 ... in an array of this shape, its dimensions put into this order."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(order or range(len(shape)))


def _as_groups(numbers: np.ndarray) -> Groups:
    return tuple(map(tuple, numbers.tolist()))
