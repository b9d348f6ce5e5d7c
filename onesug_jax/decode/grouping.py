"""Variety in a list: no more than a few suggestions of one kind before the others have had a place.

Kinds are given: queries whose semantic ids begin alike, say. Nothing is taken out of a list. What
goes beyond its kind's share moves behind the rest, in its order, so that the list cut to k is as
varied as its candidates allow; give `BeamConfig.returned` more than k for more to choose from.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from onesug_jax.errors import UserError


class _Suggested(Protocol):
    @property
    def text(self) -> str: ...


S = TypeVar("S", bound=_Suggested)


class Groups:
    """Which kind each known query is of.

    Args:
      texts: the known queries, ascending.
      kinds: of each, int `[N]`.
      most: how many of a kind come before all others have come.
    """

    def __init__(self, texts: Sequence[str], kinds: np.ndarray, most: int):
        if most < 1:
            raise UserError(f"suggester.per_group = {most}: expected at least 1, or None")
        if len(texts) != len(kinds):
            raise UserError(
                f"{len(texts)} queries and kinds of {len(kinds)}: run the quantize stage again"
            )
        self._texts, self._kinds, self._most = texts, kinds, most

    def spread(self, suggestions: Sequence[S]) -> list[S]:
        """The same suggestions: at most `most` of each kind, then the others. A text that is not
        known is a kind of its own.
        """
        seen: collections.Counter = collections.Counter()
        first: list[S] = []
        rest: list[S] = []
        for suggestion in suggestions:
            kind = self._kind(suggestion.text)
            seen[kind] += 1
            (first if seen[kind] <= self._most else rest).append(suggestion)
        return first + rest

    def _kind(self, text: str) -> int | str:
        place = bisect.bisect_left(self._texts, text)
        if place < len(self._texts) and self._texts[place] == text:
            return int(self._kinds[place])
        return text
