"""Requests to stop: SIGTERM before a machine is taken away, SIGINT from the keyboard."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """The run was asked to stop, and saved first; exits with 128 + the signal's number, as shells
    count.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(128 + signum)
        self.step = step


class Interruption:
    """Hears SIGTERM and SIGINT while it is open; the handlers of before come back at its end.

    In a run of several processes, a signal to one of them stops all after the same step: JAX's
    preemption service hears SIGTERM and chooses that step (SIGINT then ends the process at once).
    """

    def __init__(self):
        self._signum = 0
        self._before: dict[int, Any] = {}
        self._many = jax.process_count() > 1

    def __enter__(self) -> "Interruption":
        if not self._many and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._hear)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _hear(self, signum: int, frame: Any) -> None:
        if self._signum:  # asked twice: no patience for saving
            raise KeyboardInterrupt
        self._signum = signum

    def stop_signal(self, step: int) -> int:
        """The signal to stop for after this step, or 0."""
        if self._many:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._signum
