"""Where the seconds of a run go: training steps, or one of the phases beside them."""

import contextlib
import time
from collections.abc import Iterator

# Reported even where they took no time.
PHASES = ("data", "compile", "evaluate", "save")


class Clock:
    """Seconds since it was made, and how many of them went to something other than steps."""

    def __init__(self, now=time.monotonic):
        self._now = now
        self._start = now()
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def measure_phase(self, phase: str) -> Iterator[None]:
        """Time inside counts as `phase`, not as training steps."""
        start = self._now()
        try:
            yield
        finally:
            self.spent[phase] = self.spent.get(phase, 0.0) + self._now() - start

    def total(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def without(self, *phases: str) -> float:
        """Seconds since the start, less those spent on `phases`."""
        return self.total() - sum(self.spent.get(name, 0.0) for name in phases)

    def shares(self) -> dict[str, float]:
        """Of all seconds since the start: the `goodput`, those in steps, and the `share/..` of all
        else; they add up to 1.
        """
        total = max(self.total(), 1e-9)
        spent = dict.fromkeys(PHASES, 0.0) | self.spent
        shares = {f"share/{phase}": seconds / total for phase, seconds in spent.items()}
        return {"goodput": 1 - sum(shares.values()), **shares}
