"""Degradation levels: how good an answer there is time for.

OneSug replaces a cascade that always answered in time, so this service must too. Under pressure it
answers at a cheaper level rather than let people wait, and each answer names its level. The
estimates rest on what batches took, and fade, so that a level that was slow once is tried again.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence

FULL = "full"  # all candidates, completed by written queries, by a model that reads items
CANDIDATES = "candidates"  # the same without writing
BEAM = "beam"  # by a model of text
POPULAR = "popular"  # without a model
LEVELS = (FULL, CANDIDATES, BEAM, POPULAR)  # best first
_INERTIA = 0.7  # share of an estimate that stays when a new measurement comes
_QUICKER = 0.9  # share of the time of the level above that a level may take
_NOTHING = 0.0, 0.0
_BATCHES = 2  # full ones that a request may have to wait for, however slow the model
_HALF_LIFE = 10.0  # seconds after which an estimate that nothing renewed counts half
_SIZES_HALF_LIFE = 300.0  # the same where sizes of batches are compared: they change less


class Pace:
    """What a batch takes, by level and size: a moving mean of measurements.

    `batch_sizes` are the sizes batches are filled up to, ascending.
    """

    def __init__(self, batch_sizes: Sequence[int], clock: Callable[[], float] = time.monotonic):
        self._sizes, self._clock = tuple(batch_sizes), clock
        self._seconds: dict[tuple[str, int], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def _key(self, level: str, count: int) -> tuple[str, int]:
        at = bisect.bisect_left(self._sizes, count)
        return level, self._sizes[min(at, len(self._sizes) - 1)]

    def note(self, level: str, count: int, seconds: float) -> None:
        """A batch of `count` requests took `seconds` at `level`."""
        key = self._key(level, count)
        with self._lock:
            before = self._seconds.get(key, (seconds, 0.0))[0]
            mean = _INERTIA * before + (1 - _INERTIA) * seconds
            self._seconds[key] = mean, self._clock()

    def time(self, level: str, count: int, run: Callable[..., object], *given: object) -> None:
        """Runs `run(*given)` twice, and notes the second time: the first one compiles."""
        run(*given)
        began = self._clock()
        run(*given)
        self.note(level, count, self._clock() - began)

    def of(self, level: str, count: int, half_life: float = _HALF_LIFE) -> float:
        """Seconds that `count` requests may take at `level`; 0 where nothing was measured."""
        seconds, noted = self._seconds.get(self._key(level, count), _NOTHING)
        seconds *= max(1.0, count / self._sizes[-1])
        return seconds * 0.5 ** ((self._clock() - noted) / half_life)

    def next_batch(self, level: str, waiting: int) -> int:
        """How many of `waiting` requests should make the next batch: as many as cost least each.

        A batch is filled up, so on a CPU three requests in a batch of eight may take longer than
        one after another; a GPU hardly notices the five that fill up.
        """
        largest = min(waiting, self._sizes[-1])
        counts = {min(waiting, size) for size in self._sizes} | {largest}
        each = {count: self.of(level, count, _SIZES_HALF_LIFE) / count for count in counts}
        return min(counts, key=lambda count: (each[count], -count))

    def each(self, level: str, waiting: int) -> float:
        """Seconds a request, where `waiting` are answered at `level` in the best batches."""
        count = self.next_batch(level, waiting)
        return self.of(level, count) / count

    def quicker(self, levels: Sequence[str]) -> tuple[str, ...]:
        """`levels` without those that save no time beside the one above them. What was measured
        long ago is doubted in favour of the lower level, so that it is tried again.
        """
        faster: list[str] = []
        for level in levels:
            above = self._last(faster[-1]) if faster else 0.0
            here = min(self.of(level, size) / size for size in self._sizes)
            if level == POPULAR or not above or here < _QUICKER * above:
                faster.append(level)
        return tuple(faster)

    def _last(self, level: str) -> float:
        """Seconds a request in the best of full batches, not faded; 0 where one is unknown."""
        return min(self._seconds.get((level, n), _NOTHING)[0] / n for n in self._sizes)

    @property
    def largest(self) -> int:
        """The largest batch."""
        return self._sizes[-1]

    def to_clear(self, level: str, waiting: int) -> float:
        """Seconds until `waiting` requests are all answered at `level`."""
        return waiting * self.each(level, waiting)


def choose(
    levels: Sequence[str], pace: Pace, waiting: int, batch: int, waited: float, target: float
) -> str:
    """The best level at which all that wait are answered in time.

    A slow model alone is no pressure: without a backlog the first level is taken, however slow.

    Args:
      levels: levels in use, best first.
      pace: what batches take.
      waiting: requests in the queue. batch: most requests of a batch.
      waited: seconds the longest waiting of them has waited. target: seconds an answer may take.
    """
    if waiting <= batch and waited <= target / 2:
        return levels[0]
    for level in levels[:-1]:
        first = waited + pace.of(level, pace.next_batch(level, waiting))
        if level == POPULAR or max(first, pace.to_clear(level, waiting)) <= target:
            return level
    return levels[-1]


def in_time(levels: Sequence[str], pace: Pace, level: str, left: float, size: int) -> str:
    """`level`, or the best one below it whose answer comes within `left` seconds."""
    for lower in levels[list(levels).index(level) :]:
        if lower == POPULAR or pace.of(lower, size) <= left:
            return lower
    return levels[-1]


def crowded(
    levels: Sequence[str], pace: Pace, waiting: int, busy: float, most: float, within: float
) -> float:
    """Seconds that a request which comes now would wait for the model, where that is too long; else
    0, as for any that finds nobody waiting.

    Args:
      levels: levels in use, best first; those who wait are taken to be answered at the cheapest.
      pace: what batches take.
      waiting: requests in the queue. busy: seconds until the model is free for them.
      most: seconds that may be waited, or as long as two full batches take.
      within: seconds until the answer is of no use.
    """
    if not waiting:
        return 0.0
    level = pace.quicker(levels)[-1]
    wait = busy + pace.to_clear(level, waiting)
    most = max(most, _BATCHES * pace.to_clear(level, pace.largest))
    return wait if wait > most or wait + pace.of(level, 1) > within else 0.0
