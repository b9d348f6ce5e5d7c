"""Degradation levels: the best answer that the time allows.

OneSug replaces a cascade that always answered in time, so this service must too. Under load it
answers at a cheaper level instead of late, and each answer names its level. The estimates come from
measured batches. They decay, so that a level that was slow once is tried again.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence

FULL = "full"  # a model that reads items: candidates, completed by written queries
CANDIDATES = "candidates"  # the same without written queries
BEAM = "beam"  # a text model
POPULAR = "popular"  # no model
LEVELS = (FULL, CANDIDATES, BEAM, POPULAR)  # best first
_INERTIA = 0.7  # weight of the old estimate when a new measurement arrives
_QUICKER = 0.9  # a level is of use if its time is below this share of the level above
_UNKNOWN = 0.0, 0.0
_BATCHES = 2  # full batches that a request may always wait for, however slow the model
_HALF_LIFE = 10.0  # seconds after which an estimate without new measurements is halved
_SIZES_HALF_LIFE = 300.0  # the same for comparing batch sizes: their times change less


class Pace:
    """The time of a batch by level and size: a moving mean of measurements.

    `batch_sizes` are the sizes that batches are padded to, ascending.
    """

    def __init__(self, batch_sizes: Sequence[int], clock: Callable[[], float] = time.monotonic):
        self._sizes, self._clock = tuple(batch_sizes), clock
        self._seconds: dict[tuple[str, int], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def _key(self, level: str, count: int) -> tuple[str, int]:
        at = bisect.bisect_left(self._sizes, count)
        return level, self._sizes[min(at, len(self._sizes) - 1)]

    def note(self, level: str, count: int, seconds: float) -> None:
        """Adds the measurement of a batch of `count` requests at `level`."""
        key = self._key(level, count)
        with self._lock:
            before = self._seconds.get(key, (seconds, 0.0))[0]
            mean = _INERTIA * before + (1 - _INERTIA) * seconds
            self._seconds[key] = mean, self._clock()

    def time(self, level: str, count: int, run: Callable[..., object], *args: object) -> None:
        """Runs `run(*args)` twice and notes the second time: the first run compiles."""
        run(*args)
        began = self._clock()
        run(*args)
        self.note(level, count, self._clock() - began)

    def of(self, level: str, count: int, half_life: float = _HALF_LIFE) -> float:
        """Estimated seconds for `count` requests at `level`; 0 without measurements."""
        seconds, noted = self._seconds.get(self._key(level, count), _UNKNOWN)
        seconds *= max(1.0, count / self._sizes[-1])
        return seconds * 0.5 ** ((self._clock() - noted) / half_life)

    def next_batch(self, level: str, waiting: int) -> int:
        """The number of the `waiting` requests for the next batch: the one with the least time per
        request.

        Batches are padded: on a CPU, three requests in a batch of eight may take longer than one
        by one; on a GPU the padding costs almost nothing.
        """
        largest = min(waiting, self._sizes[-1])
        counts = {min(waiting, size) for size in self._sizes} | {largest}
        each = {count: self.of(level, count, _SIZES_HALF_LIFE) / count for count in counts}
        return min(counts, key=lambda count: (each[count], -count))

    def each(self, level: str, waiting: int) -> float:
        """Seconds per request if `waiting` requests are answered at `level` in the best batches."""
        count = self.next_batch(level, waiting)
        return self.of(level, count) / count

    def quicker(self, levels: Sequence[str]) -> tuple[str, ...]:
        """`levels` without those that save no time compared with the one above them. Only the
        estimate of the lower level decays, so that it is tried again.
        """
        faster: list[str] = []
        for level in levels:
            above = self._last(faster[-1]) if faster else 0.0
            own = min(self.of(level, size) / size for size in self._sizes)
            if level == POPULAR or not above or own < _QUICKER * above:
                faster.append(level)
        return tuple(faster)

    def _last(self, level: str) -> float:
        """Seconds per request in the best full batch, not decayed; 0 if any size is unknown."""
        return min(self._seconds.get((level, n), _UNKNOWN)[0] / n for n in self._sizes)

    @property
    def largest(self) -> int:
        """The largest batch."""
        return self._sizes[-1]

    def to_clear(self, level: str, waiting: int) -> float:
        """Seconds to answer `waiting` requests at `level`."""
        return waiting * self.each(level, waiting)


def choose(
    levels: Sequence[str], pace: Pace, waiting: int, batch: int, waited: float, target: float
) -> str:
    """The best level at which the whole queue is answered in time.

    Without a backlog the first level is used, however slow the model is.

    Args:
      levels: levels in use, best first.
      pace: times of batches.
      waiting: requests in the queue. batch: most requests of a batch.
      waited: seconds that the oldest request has waited. target: seconds an answer may take.
    """
    if waiting <= batch and waited <= target / 2:
        return levels[0]
    for level in levels[:-1]:
        first = waited + pace.of(level, pace.next_batch(level, waiting))
        if level == POPULAR or max(first, pace.to_clear(level, waiting)) <= target:
            return level
    return levels[-1]


def in_time(levels: Sequence[str], pace: Pace, level: str, left: float, size: int) -> str:
    """`level`, or the best one below it that answers within `left` seconds."""
    for lower in levels[list(levels).index(level) :]:
        if lower == POPULAR or pace.of(lower, size) <= left:
            return lower
    return levels[-1]


def crowded(
    levels: Sequence[str], pace: Pace, waiting: int, busy: float, most: float, within: float
) -> float:
    """Seconds that a new request would wait for the model if that is too long; else 0. With an
    empty queue it is 0.

    Args:
      levels: levels in use, best first; the queue is assumed to be answered at the cheapest.
      pace: times of batches.
      waiting: requests in the queue. busy: seconds until the model is free.
      most: longest accepted wait in seconds; two full batches are always accepted.
      within: seconds until the deadline.
    """
    if not waiting:
        return 0.0
    level = pace.quicker(levels)[-1]
    wait = busy + pace.to_clear(level, waiting)
    most = max(most, _BATCHES * pace.to_clear(level, pace.largest))
    return wait if wait > most or wait + pace.of(level, 1) > within else 0.0
