"""Who waits for the model: who is let in, who makes the next batch, and at which level.

A request that would wait too long, as the model's pace says, is refused when it comes. Those that
wait make batches in the order in which they came; under pressure those who have waited longest get
the cheapest level, so that the model can answer the others in time.
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


MOST_WAITING = 1024  # requests; more are refused at once, whatever the model's pace


@dataclass
class Waiting:
    """A request in the queue; when it came, and when its answer is of no use any more."""

    request: SuggestRequest
    future: Future
    arrived: float
    deadline: float


class WaitingRoom:
    """The queue before the model's thread. All methods may be called from any thread.

    Args:
      config: the longest wait, the largest batch, the levels' target.
      pace: what batches take.
    """

    def __init__(self, config: EngineConfig, pace: Pace):
        self._config, self._pace = config, pace
        self._queue: collections.deque[Waiting] = collections.deque()
        self._given, self._free_at = 0, 0.0  # requests the model is at; when it will be done
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def crowded(self, levels: Sequence[str], within: float = math.inf, inside: int = 0) -> float:
        """Seconds after which to ask again, where a request that comes now is refused; else 0. It
        waits for no lock.

        Args:
          levels: in use, best first.
          within: seconds until the answer is of no use.
          inside: requests that have come and have no answer yet, in the queue or not.
        """
        busy, most = max(0.0, self._free_at - time.monotonic()), self._config.wait_ms / 1000
        coming = inside - self._given

        def wait(waiting: int) -> float:
            over = self._config.target_ms / 1000 if waiting >= MOST_WAITING else 0.0
            there = max(waiting, coming)
            return max(over, crowded(levels, self._pace, there, busy, most, within))

        return wait(len(self._queue)) and wait(len(self._present()))

    def _present(self) -> list[Waiting]:
        """Those whose clients have not gone."""
        return [one for one in self._queue.copy() if not one.future.cancelled()]

    def add(self, request: SuggestRequest, levels: Sequence[str]) -> Future:
        """Lets a request in; the Future holds what it is answered.

        Raises:
          Full: it would wait too long, or there is no place.
          NotReady: the room is closed.
        """
        config, now = self._config, time.monotonic()
        within = config.deadline_ms / 1000 if request.within is None else request.within
        with self._changed:
            if self._closed:
                raise NotReady("the server is closing")
            if after := self.crowded(levels, within):
                raise Full(after)
            if len(self._queue) >= MOST_WAITING:
                self._queue = collections.deque(self._present())
            one = Waiting(request, Future(), now, now + within)
            self._queue.append(one)
            self._changed.notify()
        return one.future

    def close(self) -> None:
        """Lets nobody in any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, levels_now: Callable[[], Sequence[str]]) -> Groups | None:
        """The next batch by level, cheapest first, as soon as there is one; None: the room is
        closed and empty.
        """
        config = self._config
        with self._changed:
            self._given = 0
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
                # Those whom the model can still answer in time are left to it.
                level = faster[-2]
                each = self._pace.each(level, len(queue))
                fits = max(1, int(target / each) if each else config.max_batch)
                while len(queue) > fits:
                    groups[POPULAR].append(queue.popleft())
            size = self._pace.next_batch(level, len(queue)) if level != POPULAR else len(queue)
            for _ in range(size):
                one = queue.popleft()
                lower = in_time(faster, self._pace, level, one.deadline - now, size)
                groups[lower].append(one)
            takes = (self._pace.of(name, len(group)) for name, group in groups.items())
            self._given, self._free_at = sum(map(len, groups.values())), now + sum(takes)
        return sorted(groups.items(), key=lambda group: LEVELS.index(group[0]), reverse=True)
