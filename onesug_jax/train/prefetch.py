"""Batches made ahead of time in a background thread, so that the devices do not wait for the
host.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

DEPTH = 2


class Prefetch:
    """`make(step)` for the steps to come, ahead of time, in a background thread; in order."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, depth: int = DEPTH):
        self._make, self._stop, self._next = make, stop, start
        self._waiting: deque[Future] = deque()
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, step: int) -> Any:
        """The value for `step`; steps are asked for one after another. Raises what `make`
        raised.
        """
        self._submit()
        return self._waiting.popleft().result()

    def ready(self) -> bool:
        """Whether the next `get` would return, or raise, at once."""
        self._submit()
        return self._waiting[0].done()

    def _submit(self) -> None:
        while len(self._waiting) <= self._depth and self._next < self._stop:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1
