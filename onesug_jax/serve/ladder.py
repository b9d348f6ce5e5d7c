"""How good an answer there is time for: full beams, the pool scored, or the most popular.

OneSug replaces a cascade that always answered in time, so this service must too. Under pressure it
steps down a ladder of rungs rather than let people wait: each answer says which rung it came from.
The estimates rest on what batches took, and fade, so that a rung that was slow once is tried again.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence

POPULAR = "popular"  # the rung without a model
RUNGS = ("hybrid", "beam", "score", POPULAR)  # best first
_KEPT = 0.7  # of an estimate, when a new measurement comes
_QUICKER = 0.9  # share of the time of the rung above that a rung may take
_NOTHING = 0.0, 0.0
_HALF_LIFE = 10.0  # seconds after which an estimate that nothing renewed counts half
_SIZES_HALF_LIFE = 300.0  # the same where sizes of batches are compared: they change less


class Pace:
    """What a batch takes, by rung and size: a moving mean of measurements.

    `batch_sizes` are the sizes batches are filled up to, ascending.
    """

    def __init__(self, batch_sizes: Sequence[int], clock: Callable[[], float] = time.monotonic):
        self._sizes, self._clock = tuple(batch_sizes), clock
        self._seconds: dict[tuple[str, int], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def _key(self, rung: str, count: int) -> tuple[str, int]:
        at = bisect.bisect_left(self._sizes, count)
        return rung, self._sizes[min(at, len(self._sizes) - 1)]

    def note(self, rung: str, count: int, seconds: float) -> None:
        """A batch of `count` requests took `seconds` at `rung`."""
        key = self._key(rung, count)
        with self._lock:
            before = self._seconds.get(key, (seconds, 0.0))[0]
            mean = _KEPT * before + (1 - _KEPT) * seconds
            self._seconds[key] = mean, self._clock()

    def of(self, rung: str, count: int, half_life: float = _HALF_LIFE) -> float:
        """Seconds a batch of `count` requests may take at `rung`; 0 where nothing is known."""
        seconds, noted = self._seconds.get(self._key(rung, count), _NOTHING)
        return seconds * 0.5 ** ((self._clock() - noted) / half_life)

    def together(self, rung: str, waiting: int) -> int:
        """How many of `waiting` requests should make the next batch: as many as cost least each.

        A batch is filled up, so on a CPU three requests in a batch of eight may take longer than
        one after another; a GPU hardly notices the five that fill up.
        """
        largest = min(waiting, self._sizes[-1])
        counts = {min(waiting, size) for size in self._sizes} | {largest}
        each = {count: self.of(rung, count, _SIZES_HALF_LIFE) / count for count in counts}
        return min(counts, key=lambda count: (each[count], -count))

    def each(self, rung: str, waiting: int) -> float:
        """Seconds a request, where `waiting` are answered at `rung` in the best batches."""
        count = self.together(rung, waiting)
        return self.of(rung, count) / count

    def quicker(self, ladder: Sequence[str]) -> tuple[str, ...]:
        """The ladder without rungs that save no time beside the rung above them. What was measured
        long ago is doubted in favour of the lower rung, so that it is tried again.
        """
        kept: list[str] = []
        for rung in ladder:
            above = self._last(kept[-1]) if kept else 0.0
            here = min(self.of(rung, size) / size for size in self._sizes)
            if rung == POPULAR or not above or here < _QUICKER * above:
                kept.append(rung)
        return tuple(kept)

    def _last(self, rung: str) -> float:
        """Seconds a request in the best of full batches, not faded; 0 where one is unknown."""
        return min(self._seconds.get((rung, n), _NOTHING)[0] / n for n in self._sizes)

    def to_clear(self, rung: str, waiting: int) -> float:
        """Seconds until `waiting` requests are all answered at `rung`."""
        return waiting * self.each(rung, waiting)


def choose(
    ladder: Sequence[str], pace: Pace, waiting: int, batch: int, waited: float, target: float
) -> str:
    """The best rung at which all that wait are answered in time.

    A slow model alone is no pressure: without a backlog the first rung is taken, whatever it takes.

    Args:
      ladder: rungs in use, best first.
      pace: what batches take.
      waiting: requests in the queue. batch: most requests of a batch.
      waited: seconds the longest waiting of them has waited. target: seconds an answer may take.
    """
    if waiting <= batch and waited <= target / 2:
        return ladder[0]
    for rung in ladder[:-1]:
        first = waited + pace.of(rung, pace.together(rung, waiting))
        if rung == POPULAR or max(first, pace.to_clear(rung, waiting)) <= target:
            return rung
    return ladder[-1]


def in_time(ladder: Sequence[str], pace: Pace, rung: str, left: float, size: int) -> str:
    """`rung`, or the best one below it whose answer comes within `left` seconds."""
    for lower in ladder[list(ladder).index(rung) :]:
        if lower == POPULAR or pace.of(lower, size) <= left:
            return lower
    return ladder[-1]
