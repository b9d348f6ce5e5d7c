"""Processor time by what it went to: an update says which of its parts cost how much."""

from __future__ import annotations

import resource

_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


class Spent:
    """Processor seconds of this process and of those it started, by what they went to."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.lap("start")

    def lap(self, name: str) -> None:
        """What was spent since the lap before went to `name`."""
        used = [resource.getrusage(who) for who in _WHO]
        total = sum(one.ru_utime + one.ru_stime for one in used)
        self.laps[name] = total - sum(self.laps.values())

    def __str__(self) -> str:
        laps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} CPU seconds: {laps}"
