"""Settings of the engine: batches, cache, degradation; and the shapes that they imply."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onesug_jax.decode.shapes import Shapes
from onesug_jax.errors import UserError
from onesug_jax.serve.levels import LEVELS


@dataclass(frozen=True)
class EngineConfig:
    """How requests are batched, cached and, under load, answered more cheaply.

    Attributes:
      max_batch: most requests of one batch on each device.
      max_wait_ms: how long the first request of a batch waits for others, if batching is faster.
      wait_ms: longest expected wait for the model. A request whose expected wait is longer than
        this and than two batches is refused at once.
      levels: degradation levels in use, best first: "full" and "candidates" (models that read
        items; "candidates" writes no queries), "beam" (text models), "popular". Levels that the
        model lacks are skipped.
      target_ms: time of an answer above which cheaper levels are used.
      deadline_ms: default deadline of a request.
      candidates: compiled numbers of candidates for models that read items; the maximum of a
        request is added.
      lengths: compiled input lengths for text models, as shares of the longest.
      watch_seconds: interval of the checks for a new version, changed blocked terms and new events.
      stale_days: if the log ended this long before the model was made, its end is moved to that
        time; otherwise all of its decayed counts would have vanished.
    """

    max_batch: int = 8
    max_wait_ms: float = 2.0
    wait_ms: float = 50.0
    levels: tuple[str, ...] = ("full", "candidates", "beam", "popular")
    target_ms: float = 100.0
    deadline_ms: float = 2000.0
    candidates: tuple[int, ...] = (16, 64)
    lengths: tuple[float, ...] = (0.75, 1.0)
    watch_seconds: float = 1.0
    stale_days: float = 7.0

    def __post_init__(self):
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))
        object.__setattr__(self, "candidates", tuple(sorted(self.candidates)))
        if self.max_batch < 1:
            raise UserError(f"EngineConfig.max_batch = {self.max_batch}: expected 1 or more.")
        if self.max_wait_ms < 0 or min(self.target_ms, self.deadline_ms, self.watch_seconds) <= 0:
            raise UserError(
                "EngineConfig: expected max_wait_ms of 0 or more, target_ms, deadline_ms and "
                f"watch_seconds above 0; found {self.max_wait_ms}, {self.target_ms}, "
                f"{self.deadline_ms}, {self.watch_seconds}."
            )
        if not self.wait_ms > 0:
            raise UserError(f"EngineConfig.wait_ms = {self.wait_ms}: expected above 0.")
        if self.candidates and self.candidates[0] < 1:
            raise UserError(
                f"EngineConfig.candidates = {list(self.candidates)}: expected numbers above 0."
            )
        places = [LEVELS.index(level) for level in self.levels if level in LEVELS]
        if not places or len(places) < len(self.levels) or places != sorted(set(places)):
            raise UserError(
                f"EngineConfig.levels = {list(self.levels)}: expected some of "
                f"{', '.join(LEVELS)}, in this order."
            )
        if not self.lengths or self.lengths[-1] != 1 or self.lengths[0] <= 0:
            raise UserError(
                f"EngineConfig.lengths = {list(self.lengths)}: expected shares above 0, the "
                "largest 1."
            )

    def over(self, devices: int) -> EngineConfig:
        """This configuration with batches for several devices."""
        return replace(self, max_batch=devices * self.max_batch)

    def shapes(self, longest: int) -> Shapes:
        """The compiled shapes of a text model with inputs of at most `longest` ids."""
        lengths = sorted({max(1, round(share * longest)) for share in self.lengths})
        return Shapes(self.batch_sizes, tuple(lengths))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The compiled batch sizes: max_batch, an eighth of it, and so on down to 1."""
        sizes = [self.max_batch]
        while sizes[0] > 1:
            sizes.insert(0, max(1, sizes[0] // 8))
        return tuple(sizes)
