"""Updates dispatched ahead of time, which keeps devices busy; their number is bounded."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax

from onesug_jax.train.report import Report
from onesug_jax.train.train_state import TrainState

MAX_INFLIGHT_STEPS = 2


class InFlight:
    """Runs updates; at most `MAX_INFLIGHT_STEPS` of them are unfinished.

    Attributes:
      examples: of all updates except those that compiled.
      tokens: of the same updates; None: not counted.
    """

    def __init__(self, name: str, train_step: Callable[..., Any], frozen: Any, report: Report):
        self._name, self._step, self._frozen, self._report = name, train_step, frozen, report
        self._compiled: set[str] = set()
        self._running: deque[Any] = deque()
        self.examples = 0
        self.tokens: int | None = 0

    def busy(self) -> bool:
        """Whether the last dispatched update is unfinished."""
        return bool(self._running) and not all(
            x.is_ready() for x in jax.tree.leaves(self._running[-1])
        )

    def run(self, state: TrainState, prepared: tuple) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update with the output of `prepare_batch`: the new state, and metrics that may not be
        computed yet.
        """
        size, tokens, shape, batch = prepared
        if shape in self._compiled:
            state, metrics = self._step(state, batch, self._frozen)
            self.examples += size
            self.tokens = None if tokens is None else (self.tokens or 0) + tokens
        else:  # the first call with a new shape traces and compiles
            self._report.say(f"{self._name}: compiling for batches of {shape}")
            with self._report.clock.measure_phase("compile"):
                state, metrics = self._step(state, batch, self._frozen)
                jax.block_until_ready(metrics)
            self._compiled.add(shape)
        self._running.append(metrics)
        if len(self._running) > MAX_INFLIGHT_STEPS:
            jax.block_until_ready(self._running.popleft())
        return state, metrics
