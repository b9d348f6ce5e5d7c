"""The time that a run spends in training steps and in each other phase."""

import contextlib
import time
from collections.abc import Iterator

# Reported even if they took no time.
PHASES = ("data", "compile", "evaluate", "save")


class Clock:
    """Seconds since its creation, and seconds of each phase other than training steps."""

    def __init__(self, now=time.monotonic):
        self._now = now
        self._start = now()
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def measure_phase(self, phase: str) -> Iterator[None]:
        """Count the time inside as `phase`, not as training steps."""
        start = self._now()
        try:
            yield
        finally:
            self.spent[phase] = self.spent.get(phase, 0.0) + self._now() - start

    def total(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def without(self, *phases: str) -> float:
        """Seconds since the start without those of `phases`."""
        return self.total() - sum(self.spent.get(name, 0.0) for name in phases)

    def shares(self) -> dict[str, float]:
        """Shares of the time since the start, with sum 1: `goodput` (steps), and `share/PHASE`."""
        total = max(self.total(), 1e-9)
        spent = dict.fromkeys(PHASES, 0.0) | self.spent
        shares = {f"share/{phase}": seconds / total for phase, seconds in spent.items()}
        return {"goodput": 1 - sum(shares.values()), **shares}
