"""Stop signals: SIGTERM before a machine is preempted, SIGINT from the keyboard."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """A signal stopped the run, which saved first; the exit code is 128 + the signal's number."""

    def __init__(self, signum: int, step: int):
        super().__init__(128 + signum)
        self.step = step


class Interruption:
    """Handles SIGTERM and SIGINT inside the context; its end restores the previous handlers.

    In a run of several processes, SIGTERM to one of them stops all after the same step, which JAX's
    preemption service chooses. SIGINT ends such a process at once.
    """

    def __init__(self):
        self._signum = 0
        self._before: dict[int, Any] = {}
        self._many = jax.process_count() > 1

    def __enter__(self) -> "Interruption":
        if not self._many and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _handle(self, signum: int, frame: Any) -> None:
        if self._signum:  # a second signal stops without saving
            raise KeyboardInterrupt
        self._signum = signum

    def stop_signal(self, step: int) -> int:
        """The signal that requests a stop after this step, or 0."""
        if self._many:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._signum
