"""Which queries exist: those that enough different visitors have searched.

What few people searched may be a secret of theirs, and is often a typing mistake. So a query
becomes a candidate, and gets a number if it has none, once `min_users` visitors have searched it.
Who a visitor is, and that nameless searches of a day are one, stands in `logs.schema.visitor_of`.
Visitors are remembered as hashes, and only until then. Which queries are `new` decides what
`AsOfConfig.new_share` is asked of.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.repeats import hash_of

_WAITING = 65_536  # most texts without a number; the one that has waited longest makes room


@dataclasses.dataclass
class Waited:
    """What happened to a text before it had a number: visitors' hashes, (time, prefix) of each
    search, orders and item clicks.
    """

    visitors: set[int] = dataclasses.field(default_factory=set)
    searches: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    conversions: list[int] = dataclasses.field(default_factory=lambda: [0, 0])


class Existence:
    """Which of the numbers 0 .. N - 1 exist, and which texts without a number wait to.

    Args:
      size: N; none of them exists at first.
      min_users: different visitors that make a query exist.
      first_new: numbers from this one on are new.
      new_from_ms: so is what begins to exist then or later; None: nothing else is.

    Attributes:
      exists: [N] bool; `is_there` looks at one of them.
      new: [N] bool, of those that exist.
      waiting: texts without a number.
    """

    def __init__(self, size: int, min_users: int, first_new: int, new_from_ms: float | None = None):
        self._min_users = min_users
        self._new_from = math.inf if new_from_ms is None else new_from_ms
        self._flags = bytearray(size)
        self.exists = np.frombuffer(self._flags, bool)  # the same memory
        self.new = np.arange(size) >= first_new
        self.visitors: dict[int, tuple[int, ...]] = {}  # of numbers that do not exist yet
        self.waiting: collections.OrderedDict[str, Waited] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "exists"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.exists = np.frombuffer(self._flags, bool)

    def is_there(self, number: int) -> bool:
        """Whether the query of that number exists; False for -1."""
        return number >= 0 and self._flags[number] != 0

    def of_number(self, number: int, visitor: str, time_ms: int) -> None:
        """Takes note of a search of the query of that number."""
        if self._flags[number]:
            return
        if self._min_users > 1:
            seen = {*self.visitors.get(number, ()), hash_of(visitor)}
            if len(seen) < self._min_users:
                self.visitors[number] = tuple(seen)
                return
            self.visitors.pop(number, None)
        self.exists[number] = True
        self.new[number] |= time_ms >= self._new_from

    def of_text(self, text: str, visitor: str, time_ms: int, prefix: str) -> Waited | None:
        """Takes note of a search of a text without a number; what happened to it by now, where it
        begins to exist, else None.
        """
        waited = self.waiting.pop(text, None) or Waited()
        waited.visitors.add(hash_of(visitor))
        waited.searches.append((time_ms, prefix))
        if len(waited.visitors) >= self._min_users:
            return waited
        if len(self.waiting) >= _WAITING:
            self.waiting.popitem(last=False)
        self.waiting[text] = waited
        return None

    def converted(self, text: str, added: Sequence[bool]) -> None:
        """Takes note of an order or item click of a text without a number."""
        waited = self.waiting.get(text)
        if waited is not None:
            waited.conversions = [a + b for a, b in zip(waited.conversions, added, strict=True)]
