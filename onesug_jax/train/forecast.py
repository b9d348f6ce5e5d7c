"""The expected time of a compiled step: a lower bound, and a range.

    bound    = max(compute, memory, links, network)     if they overlap completely
    sum      = compute + memory + links + network       if nothing overlaps
    estimate = from A * bound to max(B * bound, C * sum)

A is the smallest and B the largest measured ratio of a step's time to its bound, and C the largest
ratio to its sum, over the steps of `MEASURED`. These ran on single GPUs; no TPU was measured.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured training step of `base` as a plain T5 (96 + 12 tokens, bfloat16).

    Attributes:
      name: the device and the batch.
      measured_ms: the step's time; compute_ms: FLOPs / peak; memory_ms: bytes of the H200's
        compiled program / bandwidth, also for the H100.
    """

    name: str
    measured_ms: float
    compute_ms: float
    memory_ms: float

    @property
    def bound_ms(self) -> float:
        """The time with complete overlap."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def sum_ms(self) -> float:
        """The time without overlap."""
        return self.compute_ms + self.memory_ms


MEASURED = (
    Measured("H200, 256 requests", 50.8, 17.0, 29.0),
    Measured("H200, 512 requests", 95.3, 34.0, 52.9),
    Measured("H200, 256 requests, every layer recomputed", 64.9, 21.6, 39.3),
    Measured("H100, 256 requests", 54.9, 17.0, 41.6),
    Measured("H100, 512 requests", 100.6, 34.0, 75.8),
)
OF_BOUND = [one.measured_ms / one.bound_ms for one in MEASURED]
OF_SUM = [one.measured_ms / one.sum_ms for one in MEASURED]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Seconds of one step.

    Attributes:
      compute, memory, links, network: the time of each alone, by published figures; the network
        connects slices.
    """

    compute: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def bound(self) -> float:
        """The largest time; no step is faster."""
        return max(dataclasses.astuple(self))

    @property
    def largest(self) -> str:
        """The name of the largest time."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def sum(self) -> float:
        """The time without overlap."""
        return sum(dataclasses.astuple(self))

    @property
    def fast(self) -> float:
        """The lower end of the estimate."""
        return min(OF_BOUND) * self.bound

    @property
    def slow(self) -> float:
        """The upper end of the estimate."""
        return max(max(OF_BOUND) * self.bound, max(OF_SUM) * self.sum)
