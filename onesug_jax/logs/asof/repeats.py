"""A limit on how often one visitor's searches of one query count on one day.

A robot, a reloading page or a spammer can thus change the counts only a few times a day. Only the
latest day is in memory, as hashes; when they are too many, the oldest are removed.
"""

from __future__ import annotations

import collections
import hashlib

from onesug_jax.logs.schema import NAMELESS
from onesug_jax.logs.times import DAY_MS

_ROOM = 1 << 18  # most (visitor, query) pairs of a day in memory


class Repeats:
    """Counts the events of each visitor and query on the latest day.

    Args:
      most: how many events of a pair count on one day.
      room: most different (visitor, query) pairs in memory.
    """

    def __init__(self, most: int, room: int = _ROOM):
        self._most, self._room = most, room
        self._day = 0
        self._seen: dict[int, int] = {}
        self._oldest: collections.deque[int] = collections.deque()  # keys of `_seen`, oldest first

    def counts(self, time_ms: int, visitor: str, query: str) -> bool:
        """Record an event; returns whether it is among the first `most` of its day, or the first of
        a nameless visitor.
        """
        day = time_ms // DAY_MS
        if day > self._day:
            self._day = day
            self._seen.clear()
            self._oldest.clear()
        key = hash_of(str(day), visitor, query)
        before = self._seen.get(key, 0)
        if not before:
            if len(self._seen) >= self._room:
                del self._seen[self._oldest.popleft()]
            self._oldest.append(key)
        self._seen[key] = before + 1
        return not before or (before < self._most and not visitor.startswith(NAMELESS))

    def to_json(self) -> list:
        """The day, the hashes of the pairs seen on it, and their numbers of events."""
        return [self._day, list(self._seen), list(self._seen.values())]

    def from_json(self, stored: list) -> None:
        """Restore the output of `to_json`."""
        self._day, keys, times = stored
        self._seen, self._oldest = dict(zip(keys, times, strict=True)), collections.deque(keys)


def hash_of(*parts: str) -> int:
    """A 64-bit hash of some texts."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
