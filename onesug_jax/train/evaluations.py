"""The schedule of evaluations, the best evaluation, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onesug_jax.errors import UserError


@dataclass
class Evaluations:
    """The evaluations of a run, including those of the runs that it resumes.

    Attributes:
      every: updates between evaluations; the last update is evaluated too; 0: never.
      steps: updates in all.
      metric: name of the metric whose highest value is the best; None: no best.
      patience: evaluations without improvement after which to stop; 0: never.
      last: completed updates at the last evaluation.
      best: {"metric", "step", "value"} of the best evaluation; None before the first.
    """

    every: int
    steps: int
    metric: str | None
    patience: int
    last: int = 0
    best: dict[str, Any] | None = None

    def go_on(self, last: int, best: dict[str, Any] | None) -> None:
        """Continue from a checkpoint's notes; a best by another metric does not count."""
        self.last = last
        if best and self.metric in (None, best["metric"]):
            self.best = best

    def due(self, step: int) -> bool:
        """Whether an evaluation is scheduled after update `step` and was not made yet."""
        regular = self.every and (step % self.every == 0 or step == self.steps)
        return bool(regular and step > self.last)

    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        if not (self.patience and self.every and self.metric and self.best):
            return False
        return self.last - self.best["step"] >= self.patience * self.every

    def add(self, step: int, values: Mapping[str, float]) -> bool:
        """Record the values after update `step`; returns whether they are the best so far.

        Raises:
          UserError: the metric is missing.
        """
        self.last = step
        if self.metric is None:
            return False
        if self.metric not in values:
            raise UserError(
                f"best_metric={self.metric!r}: the evaluation gives {', '.join(sorted(values))}."
            )
        value = float(values[self.metric])
        better = self.best is None or value > self.best["value"]
        if math.isfinite(value) and better:
            self.best = {"metric": self.metric, "step": step, "value": value}
            return True
        return False
