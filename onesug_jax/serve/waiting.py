"""The queue before the model: which requests it accepts, the next batch, and its level.

A request with too long an expected wait is refused when it arrives. Batches are made in the order
of arrival. Under load, the oldest requests get the cheapest level, so that the model can answer the
others in time.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import LEVELS, POPULAR, Pace, choose, crowded, in_time
from onesug_jax.serve.requests import Full, NotReady, SuggestRequest

Groups = list[tuple[str, list["Waiting"]]]


MOST_WAITING = 1024  # requests; more are refused at once


@dataclass
class Waiting:
    """A request in the queue. Times as of `time.monotonic`."""

    request: SuggestRequest
    future: Future
    arrived: float
    deadline: float


class RequestQueue:
    """The queue before the model's thread. All methods may be called from any thread.

    Args:
      config: the longest wait, the largest batch, the levels' target.
      pace: times of batches.
    """

    def __init__(self, config: EngineConfig, pace: Pace):
        self._config, self._pace = config, pace
        self._queue: collections.deque[Waiting] = collections.deque()
        self._in_batch, self._free_at = 0, 0.0  # requests in the current batch; its expected end
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def crowded(self, levels: Sequence[str], within: float = math.inf, inside: int = 0) -> float:
        """Seconds after which to retry if a new request would be refused; else 0. It takes no lock.

        Args:
          levels: in use, best first.
          within: seconds until the deadline.
          inside: arrived requests without an answer, in the queue or not.
        """
        busy, most = max(0.0, self._free_at - time.monotonic()), self._config.wait_ms / 1000

        def wait(queued: int) -> float:
            over = self._config.target_ms / 1000 if queued >= MOST_WAITING else 0.0
            waiting = max(queued, inside - self._in_batch)
            return max(over, crowded(levels, self._pace, waiting, busy, most, within))

        return wait(len(self._queue)) and wait(len(self._not_cancelled()))

    def _not_cancelled(self) -> list[Waiting]:
        return [one for one in self._queue.copy() if not one.future.cancelled()]

    def add(self, request: SuggestRequest, levels: Sequence[str]) -> Future:
        """Adds a request; the Future will hold its answer.

        Raises:
          Full: the wait would be too long, or the queue is full.
          NotReady: the queue is closed.
        """
        config, now = self._config, time.monotonic()
        within = config.deadline_ms / 1000 if request.within is None else request.within
        with self._changed:
            if self._closed:
                raise NotReady("the server is closing")
            if after := self.crowded(levels, within):
                raise Full(after)
            if len(self._queue) >= MOST_WAITING:
                self._queue = collections.deque(self._not_cancelled())
            one = Waiting(request, Future(), now, now + within)
            self._queue.append(one)
            self._changed.notify()
        return one.future

    def close(self) -> None:
        """Refuses further requests."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, levels_now: Callable[[], Sequence[str]]) -> Groups | None:
        """Waits for the next batch and returns it by level, cheapest first; None if the queue is
        closed and empty.
        """
        config = self._config
        with self._changed:
            self._in_batch = 0
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            levels = levels_now()
            until = self._queue[0].arrived
            if self._pace.next_batch(levels[0], config.max_batch) > 1:
                until += config.max_wait_ms / 1000
            while len(self._queue) < config.max_batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            queue, now = self._queue, time.monotonic()
            groups: dict[str, list[Waiting]] = collections.defaultdict(list)
            faster, target = self._pace.quicker(levels), config.target_ms / 1000
            waited = now - queue[0].arrived
            level = choose(faster, self._pace, len(queue), config.max_batch, waited, target)
            if level == POPULAR and len(faster) > 1:
                # The model answers as many of the newest requests as it can in time.
                level = faster[-2]
                each = self._pace.each(level, len(queue))
                capacity = max(1, int(target / each) if each else config.max_batch)
                while len(queue) > capacity:
                    groups[POPULAR].append(queue.popleft())
            size = self._pace.next_batch(level, len(queue)) if level != POPULAR else len(queue)
            for _ in range(size):
                one = queue.popleft()
                lower = in_time(faster, self._pace, level, one.deadline - now, size)
                groups[lower].append(one)
            takes = (self._pace.of(name, len(group)) for name, group in groups.items())
            self._in_batch, self._free_at = sum(map(len, groups.values())), now + sum(takes)
        return sorted(groups.items(), key=lambda group: LEVELS.index(group[0]), reverse=True)
