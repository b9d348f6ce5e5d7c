"""A trace of selected updates by `jax.profiler`, for the viewers of TensorBoard and XProf."""

import os
from typing import Any

import jax

from onesug_jax.train.clock import Clock


class Profile:
    """Traces updates first..last into `folder/profile`; the overhead counts as "profile" on the
    `clock`.
    """

    def __init__(self, folder: str, steps: tuple[int, int] | None, clock: Clock):
        self._folder, self._steps, self._open = os.path.join(folder, "profile"), steps, False
        self._clock = clock

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first to trace."""
        if self._steps and not self._open and self._steps[0] <= step <= self._steps[1]:
            with self._clock.measure_phase("profile"):
                jax.profiler.start_trace(self._folder)
            self._open = True

    def after(self, step: int, metrics: Any) -> None:
        """End the trace if `step` was the last to trace."""
        if self._open and self._steps and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            with self._clock.measure_phase("profile"):
                jax.profiler.stop_trace()
            if jax.process_index() == 0:
                print(f"trace of the selected steps: {self._folder}", flush=True)
