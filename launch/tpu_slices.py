"""TPU slices by Cloud TPU's accelerator type: chips, hosts, topology, and GKE's names for them.

usage: python3 launch/tpu_slices.py TYPE [TOPOLOGY]
prints chips, machines of a queued resource, runtime version, topology, GKE's label and hosts

Runs on any Python from 3.8 on and needs no package: `tpu_train.sh` calls it where gcloud is.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys


class Mistake(Exception):
    """A flag that cannot be; its text names it, what was expected, and the way out."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of chip.

    Attributes:
      label: value of GKE's node label `cloud.google.com/gke-tpu-accelerator`.
      cores: what the number of an accelerator type counts a chip.
      runtime: software version of a Cloud TPU VM; "": GKE alone has these chips.
      dimensions: in which the chips lie.
    """

    label: str
    cores: int
    runtime: str
    dimensions: int


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", 2, "tpu-ubuntu2204-base", 3),
    "v5litepod": Generation("tpu-v5-lite-podslice", 1, "v2-alpha-tpuv5-lite", 2),
    "v5p": Generation("tpu-v5p-slice", 2, "v2-alpha-tpuv5", 3),
    "v6e": Generation("tpu-v6e-slice", 1, "v2-alpha-tpuv6e", 2),
    "tpu7x": Generation("tpu7x", 2, "", 3),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16", "16x16x16"),
)
CHIPS_PER_HOST = 4  # of a GKE node and of a VM, but for v5e and v6e VMs of 8 chips


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
      kind: the accelerator type; generation: its chips' kind; chips: how many.
      topology: how they lie, such as 4x4; "": a size whose topology must be given.
    """

    kind: str
    generation: Generation
    chips: int
    topology: str

    @classmethod
    def parse(cls, kind: str, topology: str = "") -> Slice:
        """Reads `v5litepod-16`, or with its topology a size that has several: `v5p-768`, `4x8x12`.

        Raises:
          Mistake: an unknown generation, or a number or topology that does not fit it.
        """
        prefix, _, number = kind.rpartition("-")
        if prefix not in GENERATIONS or not re.fullmatch(r"[1-9]\d*", number):
            raise Mistake(
                f"--type={kind}: expected one of {', '.join(GENERATIONS)}, a dash and a number, "
                "such as v5litepod-16"
            )
        found = GENERATIONS[prefix]
        chips, rest = divmod(int(number), found.cores)
        if rest or not chips or (chips > 1 and chips % CHIPS_PER_HOST):
            raise Mistake(
                f"--type={kind}: expected a multiple of {CHIPS_PER_HOST * found.cores}, that is of "
                f"{CHIPS_PER_HOST} chips"
            )
        by_size = {size(one): one for one in (FLAT if found.dimensions == 2 else CUBES)}
        topology = topology or by_size.get(chips, "")
        if topology and (size(topology) != chips or topology.count("x") + 1 != found.dimensions):
            raise Mistake(
                f"--topology={topology}: expected {found.dimensions} sides and {chips} chips, the "
                f"size of --type={kind}"
            )
        return cls(kind, found, chips, topology)

    @property
    def machines(self) -> int:
        """VMs of a queued resource."""
        if self.generation.dimensions == 2 and self.chips <= 8:
            return 1
        return self.hosts

    @property
    def hosts(self) -> int:
        """GKE nodes, one process each."""
        return max(1, self.chips // CHIPS_PER_HOST)

    @property
    def chips_per_host(self) -> int:
        """Chips of a GKE node."""
        return min(self.chips, CHIPS_PER_HOST)


def size(topology: str) -> int:
    """Chips of `4x4x8`; 0 where it is none."""
    sides = topology.split("x")
    return math.prod(map(int, sides)) if all(map(str.isdigit, sides)) else 0


def main() -> int:
    try:
        found = Slice.parse(*sys.argv[1:])
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    runtime, topology = found.generation.runtime or "-", found.topology or "-"
    print(found.chips, found.machines, runtime, topology, found.generation.label, found.hosts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
