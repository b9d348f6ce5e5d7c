"""When a run evaluates, which evaluation was the best, and when it stops for lack of a better one.

No arrays and no files: the numbers come from `fit`, and the notes go into its checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onesug_jax.errors import UserError


@dataclass
class Evaluations:
    """The evaluations of a run, those of the runs before it included.

    Attributes:
      every: in updates, and after the last one; 0: never.
      steps: updates in all.
      metric: name of the metric whose highest value is the best; None: none is.
      patience: evaluations without a better one after which to stop; 0: never.
      last: updates done at the last evaluation.
      best: {"metric", "step", "value"} of the best one, None before it.
    """

    every: int
    steps: int
    metric: str | None
    patience: int
    last: int = 0
    best: dict[str, Any] | None = None

    def go_on(self, last: int, best: dict[str, Any] | None) -> None:
        """Take over what the runs before noted; a best by another metric does not count."""
        self.last = last
        if best and self.metric in (None, best["metric"]):
            self.best = best

    def due(self, step: int) -> bool:
        """Whether an evaluation belongs after update `step` and has not been made."""
        regular = self.every and (step % self.every == 0 or step == self.steps)
        return bool(regular and step > self.last)

    def exhausted(self) -> bool:
        """Whether `patience` evaluations have brought nothing better."""
        if not (self.patience and self.every and self.metric and self.best):
            return False
        return self.last - self.best["step"] >= self.patience * self.every

    def add(self, step: int, values: Mapping[str, float]) -> bool:
        """Note the values after update `step`; whether they are the best so far.

        Raises:
          UserError: the metric is not among them.
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
