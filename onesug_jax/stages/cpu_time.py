"""Processor time by part of an update."""

from __future__ import annotations

import resource

_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


class CpuTime:
    """Processor seconds of this process and its children, by part."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.lap("start")

    def lap(self, name: str) -> None:
        """Assigns the time since the last lap to the part `name`."""
        usages = [resource.getrusage(who) for who in _WHO]
        total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        self.laps[name] = total - sum(self.laps.values())

    def __str__(self) -> str:
        laps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} CPU seconds: {laps}"
