"""How long a compiled step may take: a bound that nothing beats, and a range to expect.

    bound    = max(compute, memory, links, network)     as if they hid behind each other wholly
    sum      = compute + memory + links + network       as if nothing overlapped
    estimate = from A * bound to max(B * bound, C * sum)

A is the least and B the largest measured ratio of a step's time to its bound, C the largest to its
sum, over the steps of `MEASURED`. These ran on single GPUs; on a TPU nothing has been measured.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measured:
    """A training step of `base` as a plain T5 (96 + 12 tokens, bfloat16), timed and read.

    Attributes:
      name: the device and the batch.
      measured_ms: of a step; compute_ms, memory_ms: FLOPs over the device's peak, bytes of its
        compiled program over the bandwidth (the H100's: of the same program).
    """

    name: str
    measured_ms: float
    compute_ms: float
    memory_ms: float

    @property
    def bound_ms(self) -> float:
        """The larger of the two."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def sum_ms(self) -> float:
        """What nothing overlapping gives."""
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
      compute, memory, links, network: what each takes by itself, at the makers' figures; the
        network is what several slices are joined by.
    """

    compute: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def bound(self) -> float:
        """The largest of them; no step is faster."""
        return max(dataclasses.astuple(self))

    @property
    def largest(self) -> str:
        """The name of the largest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def sum(self) -> float:
        """All of them one after another."""
        return sum(dataclasses.astuple(self))

    @property
    def fast(self) -> float:
        """The estimate's shorter end."""
        return min(OF_BOUND) * self.bound

    @property
    def slow(self) -> float:
        """The estimate's longer end."""
        return max(max(OF_BOUND) * self.bound, max(OF_SUM) * self.sum)
