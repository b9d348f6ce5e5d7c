"""A least-recently-used cache."""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Hashable
from typing import Any


class Cache:
    """A thread-safe LRU cache of at most `size` values, each valid for `seconds`."""

    def __init__(self, size: int, seconds: float = math.inf):
        self._size, self._seconds = size, seconds
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value, which becomes the newest; None if there is none."""
        with self._lock:
            value, until = self._values.get(key, (None, 0.0))
            if until < time.monotonic():
                return None
            self._values.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Any) -> None:
        """Stores a value; if the cache is full, drops the least recently used one."""
        with self._lock:
            self._values[key] = value, time.monotonic() + self._seconds
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)
