"""How often one visitor's searches of one query count on one day: a robot, a page that reloads, or
somebody who wants a text listed, moves the counts a few times and no more.

Only the latest day is in memory, as hashes, and where the room ends the oldest of them leave.
"""

from __future__ import annotations

import collections
import hashlib

from onesug_jax.logs.schema import NAMELESS
from onesug_jax.logs.times import DAY_MS

_ROOM = 1 << 18  # most (visitor, query) of a day in memory


class Repeats:
    """Counts what each visitor did with each query on the latest day.

    Args:
      most: how often the same counts on one day.
      room: most different (visitor, query) in memory.
    """

    def __init__(self, most: int, room: int = _ROOM):
        self._most, self._room = most, room
        self._day = 0
        self._seen: dict[int, int] = {}
        self._oldest: collections.deque[int] = collections.deque()  # the same, in their order

    def counts(self, time_ms: int, visitor: str, query: str) -> bool:
        """Takes note of an event of that time; whether it is one of the first `most` of its day, or
        the first where the visitor has no name.
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
        """The day, and of what was seen on it the hashes and how often."""
        return [self._day, list(self._seen), list(self._seen.values())]

    def from_json(self, stored: list) -> None:
        """Takes over what `to_json` gave."""
        self._day, keys, times = stored
        self._seen, self._oldest = dict(zip(keys, times, strict=True)), collections.deque(keys)


def hash_of(*parts: str) -> int:
    """64 bits that stand for some texts."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
