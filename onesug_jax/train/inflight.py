"""Updates handed to the devices ahead: they are busy, and what waits in memory is bounded."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax

from onesug_jax.train.report import Report
from onesug_jax.train.train_state import TrainState

MAX_INFLIGHT_STEPS = 2


class InFlight:
    """Runs updates, a few of them unfinished at a time.

    Attributes:
      examples: of all updates but those that compiled.
      tokens: of the same; None: not counted.
    """

    def __init__(self, name: str, train_step: Callable[..., Any], frozen: Any, report: Report):
        self._name, self._step, self._frozen, self._report = name, train_step, frozen, report
        self._compiled: set[str] = set()
        self._running: deque[Any] = deque()
        self.examples = 0
        self.tokens: int | None = 0

    def busy(self) -> bool:
        """Whether the devices still work on an update handed to them."""
        return bool(self._running) and not all(
            x.is_ready() for x in jax.tree.leaves(self._running[-1])
        )

    def run(self, state: TrainState, prepared: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update on what `prepare_batch` gave: the state after it, and its metrics, which may
        not be computed yet.
        """
        size, read, shape, batch = prepared
        if shape in self._compiled:
            state, metrics = self._step(state, batch, self._frozen)
            self.examples += size
            self.tokens = None if read is None else (self.tokens or 0) + read
        else:  # tracing and compiling happen inside the first call with a new shape
            self._report.say(f"{self._name}: compiling for batches of {shape}")
            with self._report.clock.measure_phase("compile"):
                state, metrics = self._step(state, batch, self._frozen)
                jax.block_until_ready(metrics)
            self._compiled.add(shape)
        self._running.append(metrics)
        if len(self._running) > MAX_INFLIGHT_STEPS:
            jax.block_until_ready(self._running.popleft())
        return state, metrics
