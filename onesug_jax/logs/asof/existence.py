"""The queries that exist: those that enough different visitors have searched.

A query of few people may be private, and often is a typing error. So a query becomes a candidate,
and gets a number if it has none, once `min_users` visitors (`logs.schema.visitor_of`) have searched
it. Until then their hashes are stored. `AsOfConfig.new_share` applies to the queries that are
`new`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.repeats import hash_of

_WAITING = 65_536  # most texts without a number; the one searched longest ago is removed


@dataclasses.dataclass
class Waited:
    """The events of a text that has no number yet."""

    visitors: set[int] = dataclasses.field(default_factory=set)  # hashes
    searches: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # time, prefix
    conversions: list[int] = dataclasses.field(default_factory=lambda: [0, 0])  # orders, clicks


class Existence:
    """Which of the query numbers 0 .. N - 1 exist, and the searched texts without a number.

    Args:
      size: N; no query exists at first.
      min_users: different visitors that make a query exist.
      first_new: numbers from this one on are new.
      new_from_ms: queries that begin to exist then or later are new too; None: no others are new.

    Attributes:
      exists: [N] bool; `is_there` reads one of them.
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
        """Record a search of the query of that number."""
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
        """Record a search of a text without a number; if it begins to exist, returns its events."""
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
        """Record an order or item click of a text without a number."""
        waited = self.waiting.get(text)
        if waited is not None:
            waited.conversions = [a + b for a, b in zip(waited.conversions, added, strict=True)]
