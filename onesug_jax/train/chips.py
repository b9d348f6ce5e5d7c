"""Published performance of chips, and TPU topologies.

Figures of Cloud TPU chips are from cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, read in 2026:
peak bfloat16 operations, HBM, HBM bandwidth, and bandwidth of the links to other chips. The last is
published as the sum over all links of a chip and both directions. A collective over one mesh axis
uses one ring, which sends over two of the four or six links: `link_bytes_per_s`. The network
between slices has 6.4 Tbit/s per v5e pod, 25.6 Tbit/s per v6e pod, both of 256 chips, and 50 Gbit/s
per v5p chip. No figure is published for v4; v5e's is used.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

from onesug_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: in topologies; kind: JAX's device kind.
      flops: peak bfloat16 operations per second (a multiply-add is two).
      memory: bytes of HBM; memory_bytes_per_s: its bandwidth.
      link_bytes_per_s: bytes per second that one chip sends around one ring.
      network_bytes_per_s: its share of its host's bandwidth to other slices.
      accelerator: prefix of Cloud TPU's accelerator type; cores: cores per chip, which the
        accelerator type counts.
    """

    name: str
    kind: str
    flops: float
    memory: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    accelerator: str
    cores: int = 1


_GIB = 2.0**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, 32 * _GIB, 1228e9, 2 * 300e9 / 6, 25e9 / 8, "v4", 2),
        Chip("v5e", "TPU v5 lite", 197e12, 16 * _GIB, 819e9, 2 * 200e9 / 4, 25e9 / 8, "v5litepod"),
        Chip("v5p", "TPU v5", 459e12, 95 * _GIB, 2765e9, 2 * 600e9 / 6, 50e9 / 8, "v5p", 2),
        Chip("v6e", "TPU v6 lite", 918e12, 32 * _GIB, 1600e9, 2 * 400e9 / 4, 100e9 / 8, "v6e"),
    )
}

# Peak dense bfloat16 operations per second, by the prefix of JAX's device kind. NVIDIA's data
# sheets of the A100, H100 and H200; half of their figure "with sparsity".
GPU_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def published_flops(kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device, by JAX's device kind; None if unknown."""
    flops = {chip.kind: chip.flops for chip in CHIPS.values()} | GPU_FLOPS
    matches = [name for name in flops if kind.startswith(name)]
    return flops[max(matches, key=len)] if matches else None


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of chips, such as v5e:4x4."""

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Parse `v5e:16x16` or `v5p:4x4x8`.

        Raises:
          UserError: another form, or an unknown chip.
        """
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", text)
        if not match or match[1] not in CHIPS:
            raise UserError(
                f"--topology={text}: expected a chip and a shape, such as v5e:4x4, v5e:16x16, "
                f"v5p:4x4x8 or v6e:16x16; chips in the table: {', '.join(CHIPS)}."
            )
        name, shape = match[1], tuple(int(size) for size in match[2].split("x"))
        dimensions = 3 if name in ("v4", "v5p") else 2
        if len(shape) != dimensions or min(shape) < 1:
            raise UserError(
                f"--topology={text}: a slice of {name} chips has {dimensions} dimensions, such as "
                f"{name}:{'x'.join('4' * dimensions)}."
            )
        return cls(CHIPS[name], shape)

    @property
    def name(self) -> str:
        """Such as v5e:4x4."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def devices(self, slices: int = 1) -> list:
        """Descriptions of its chips, for compilation on a host without TPUs.

        Args:
          slices: number of such slices, connected by a network.

        Raises:
          UserError: the compiler is missing, or does not support this shape.
        """
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no request to a TPU host's metadata
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compilation locks no chip
        accelerator = f"{self.chip.accelerator}-{self.chips * self.chip.cores}"
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", accelerator)
        from jax.experimental import topologies

        options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
        if self.chip.name == "v4":  # both cores of a chip as one device, as on Cloud TPU
            options["chip_config_name"] = "megacore"
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=self.name, **options
            )
        except Exception as error:  # the plug-in raises many types
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"--topology={self.name}: compilation is not possible ({text}). The compiler is "
                "the package libtpu: `pip install 'onesug_jax[tpu]'`; shapes are those of Cloud "
                "TPU slices."
            ) from error
        return list(described.devices)
