"""TPU slices by Cloud TPU's accelerator type: chips, hosts, topology, and GKE's names for them.

usage: python3 launch/tpu_slices.py TYPE [TOPOLOGY]
prints chips, machines of a queued resource, runtime version, topology, GKE's label and hosts

Needs Python 3.8 or later and no package: `tpu_train.sh` calls it on any machine with gcloud.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys


class FlagError(Exception):
    """An invalid flag; the message names it, the expected value, and the way out."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of chip.

    Attributes:
      label: value of GKE's node label `cloud.google.com/gke-tpu-accelerator`.
      cores: units of an accelerator type's number per chip.
      runtime: software version of a Cloud TPU VM; "": only GKE has these chips.
      dimensions: number of sides of a topology.
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
CHIPS_PER_HOST = 4  # of a GKE node and of a VM, except v5e and v6e VMs of 8 chips


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
      kind: the accelerator type; generation: the kind of its chips; chips: their number.
      topology: their arrangement, such as 4x4; "": the size has several, and the user must choose.
    """

    kind: str
    generation: Generation
    chips: int
    topology: str

    @classmethod
    def parse(cls, kind: str, topology: str = "") -> Slice:
        """Reads a type such as `v5litepod-16`; a size with several topologies needs one, such as
        `v5p-768`, `4x8x12`.

        Raises:
          FlagError: an unknown generation, or a number or topology that does not fit it.
        """
        prefix, _, number = kind.rpartition("-")
        if prefix not in GENERATIONS or not re.fullmatch(r"[1-9]\d*", number):
            raise FlagError(
                f"--type={kind}: expected one of {', '.join(GENERATIONS)}, a dash and a number, "
                "such as v5litepod-16"
            )
        generation = GENERATIONS[prefix]
        dimensions = generation.dimensions
        chips, rest = divmod(int(number), generation.cores)
        if rest or not chips or (chips > 1 and chips % CHIPS_PER_HOST):
            raise FlagError(
                f"--type={kind}: expected a multiple of {CHIPS_PER_HOST * generation.cores}, that "
                f"is of {CHIPS_PER_HOST} chips"
            )
        by_size = {size(one): one for one in (FLAT if dimensions == 2 else CUBES)}
        topology = topology or by_size.get(chips, "")
        if topology and (size(topology) != chips or topology.count("x") + 1 != dimensions):
            raise FlagError(
                f"--topology={topology}: expected {dimensions} sides and {chips} chips, the size "
                f"of --type={kind}"
            )
        return cls(kind, generation, chips, topology)

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
    """The chips of a topology such as `4x4x8`; 0 if it is not one."""
    sides = topology.split("x")
    return math.prod(map(int, sides)) if all(map(str.isdigit, sides)) else 0


def main() -> int:
    try:
        parsed = Slice.parse(*sys.argv[1:])
    except FlagError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runtime, topology = parsed.generation.runtime or "-", parsed.topology or "-"
    print(parsed.chips, parsed.machines, runtime, topology, parsed.generation.label, parsed.hosts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
