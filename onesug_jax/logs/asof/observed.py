"""The counting half of the as-of state: events that were observed, and those already visible.

Searches are observed when they happen and become visible `freshness` later, in the order of their
times. `state.py` adds the half that answers requests.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.completions import Completions, WidePrefixes
from onesug_jax.logs.asof.config import DEFAULT, AsOfConfig
from onesug_jax.logs.asof.counts import DecayedCounts
from onesug_jax.logs.asof.existence import Existence
from onesug_jax.logs.asof.histories import Histories
from onesug_jax.logs.asof.pairs import ANY, PairCounts
from onesug_jax.logs.asof.repeats import Repeats
from onesug_jax.logs.asof.shown import ShownLists
from onesug_jax.logs.schema import NAMELESS, Level, visitor_of
from onesug_jax.logs.typos import Corrections

_CORRECTED = 1 << 16  # mistyped prefixes whose corrections are cached


class Observed:
    """Counts and histories as of a moment that only moves forward.

    Args:
      queries: N distinct texts in code point order; their places are their numbers. They need not
        exist yet: a query exists once `min_users` different visitors have searched it.
      config: half-lives, freshness, sizes.
      spare: most queries that get a number later, from N on, in the order in which they begin to
        exist.

    Attributes:
      moment: only events before it are visible, milliseconds since 1970.
      completions: all texts by number.
      latest_ms: time of the latest observed search; 0: none.
      first: the number of initial queries, N.
      refused: the number of searches after which a query got no number, because none was left.
    """

    def __init__(
        self, queries: Sequence[str], config: AsOfConfig = DEFAULT, *, spare: int = 65_536
    ):
        self.config = config
        self.completions = Completions(queries)
        self.first, self._most = len(queries), len(queries) + spare
        self.searches = DecayedCounts(config.half_lives_days, self._most)
        self.conversions = np.zeros((self._most, 2), np.uint32)  # orders, item clicks
        new_from_ms = config.new_from_ms if config.new_share else None
        self.existence = Existence(self._most, config.min_users, self.first, new_from_ms)
        self.pairs = PairCounts(config.pair_half_lives_days, config.most_pairs)
        self.shown = ShownLists(config.most_lists)
        self.histories = Histories(config.history, config.most_users)
        self._weights = np.array(config.weights)
        self._make_corrections(len(queries))
        self.moment, self._frozen = -np.inf, np.inf
        self.latest_ms = self.refused = 0
        self.make_wide()
        self._order = itertools.count()
        # Searches, orders and item clicks of the latest day.
        self.repeats = [Repeats(config.max_repeats) for _ in range(3)]
        self.named = False  # whether any visitor had a name so far
        self._searched: list[tuple] = []  # heaps by time of events that are not visible yet
        self._converted: list[tuple] = []
        self._remembered: list[tuple] = []

    # ------------------------------------------------------------------ events

    def observe(
        self,
        time_ms: int,
        user: str,
        prefix: str,
        query: str,
        level: int = Level.CLICK,
        visitor: str | None = None,
        shown: Sequence[str] = (),
    ) -> None:
        """Record a search and its outcome; nothing of it is visible yet.

        Args:
          time_ms: its time; events of the same time do not see one another.
          user: the user whose history it enters; "": none.
          prefix, query: the typed text and the searched query, normalised.
          level: its `Level` so far; `convert` raises it.
          visitor: the visitor, for `min_users` and `max_repeats`; None: `visitor_of` of the user.
          shown: the list that was shown for the prefix; empty: unknown.
        """
        self.latest_ms = max(self.latest_ms, time_ms)
        order = next(self._order)
        visitor = visitor_of(user, "", time_ms) if visitor is None else visitor
        heapq.heappush(self._searched, (time_ms, order, prefix, query, visitor, shown))
        self.remember(time_ms, user, query)
        if level > Level.CLICK:
            self.convert(time_ms, query, level, visitor=visitor)

    def remember(self, time_ms: int, user: str, query: str) -> None:
        """Record a search in its user's history alone; user "" has none."""
        if user:
            heapq.heappush(self._remembered, (time_ms, next(self._order), user, query))

    def convert(
        self, time_ms: int, query: str, level: int, before: int = Level.CLICK, *, visitor: str
    ) -> None:
        """Record an order or item click that followed a visitor's search of `time_ms`.

        An order counts as an item click too, so that a later event only adds to the counts;
        `before` is the level recorded already.
        """
        added = before < Level.ORDER <= level, before < Level.ITEM_CLICK <= level
        if any(added):
            heapq.heappush(self._converted, (time_ms, next(self._order), query, added, visitor))

    def freeze(self, moment_ms: int) -> None:
        """Make nothing of that moment or later visible, as for a model that is never updated.
        Histories continue, unless they follow `freshness`.
        """
        self._frozen = moment_ms

    def forget(self, user: str) -> None:
        """Remove a user's history; counts are of all users and stay."""
        self.histories.forget(user)
        self._remembered = [event for event in self._remembered if event[2] != user]
        heapq.heapify(self._remembered)

    def become(self, other: Observed) -> None:
        """Take over another state of the same queries; `other` must not be used any more."""
        vars(self).update(vars(other))

    def at(self, time_ms: float) -> None:
        """Make all events visible that a request of that time sees."""
        config = self.config
        frozen = self._frozen
        self.moment = max(self.moment, min(time_ms - config.freshness_ms, frozen))
        searched, until = self._searched, self.moment
        while searched and searched[0][0] < until:
            time, _, prefix, query, visitor, shown = heapq.heappop(searched)
            self.named = self.named or not visitor.startswith(NAMELESS)
            if not self._is_counted(0, time, visitor, query):
                continue
            self._count(time, prefix, query, visitor)
            if shown and config.shown:
                self.shown.add(prefix, shown, time)
        delay = max(config.conversion_delay_ms, config.freshness_ms)
        until = min(time_ms - delay, frozen)
        converted, number_of = self._converted, self.completions.number
        while converted and converted[0][0] < until:
            time, _, query, kinds, visitor = heapq.heappop(converted)
            added = [
                has and self._is_counted(kind, time, visitor, query)
                for kind, has in enumerate(kinds, 1)
            ]
            number = number_of(query)
            if number >= 0:
                self.conversions[number] += added
            else:
                self.existence.converted(query, added)
        freshness = config.history_freshness_ms
        until = self.moment if freshness is None else time_ms - freshness
        remembered = self._remembered
        while remembered and remembered[0][0] < until:
            time, _, user, query = heapq.heappop(remembered)
            self.histories.add(user, query, time)

    @property
    def end_ms(self) -> int:
        """The first time at which a request sees all observed events."""
        config = self.config
        delays = (config.freshness_ms, config.conversion_delay_ms, config.history_freshness_ms or 0)
        return int(self.latest_ms + max(delays) + 1)

    def settle(self) -> None:
        """Make all observed events visible."""
        self.at(self.end_ms)

    def postpone(self, ms: int) -> None:
        """Move the times of all events by `ms`; call `settle` first, as all must be visible."""
        assert not self._searched and not self._converted, "some events are not visible yet"
        self.searches.reference += ms
        self.pairs.postpone(ms)
        self.shown.postpone(ms)
        self.latest_ms += ms
        self.moment += ms

    def _is_counted(self, kind: int, time_ms: int, visitor: str, query: str) -> bool:
        """Whether an event changes the counts: `max_repeats` of a visitor and day do, and all do
        while no visitor has a name.
        """
        if not self.named and visitor.startswith(NAMELESS):
            return True
        return self.repeats[kind].counts(time_ms, visitor, query)

    def _count(self, time_ms: int, prefix: str, query: str, visitor: str) -> None:
        """Count a search that has become visible."""
        self.pairs.add(prefix, ANY, time_ms)
        number = self.completions.number(query)
        if number < 0:
            waited = self.existence.of_text(query, visitor, time_ms, prefix)
            if waited is None:
                return
            if len(self) >= self._most:
                self.refused += 1
                return
            number = self._append(query)
            self.existence.exists[number] = True
            for time, before in waited.searches:
                self._add(number, time, before)
            self.conversions[number] = waited.conversions
        else:
            self.existence.of_number(number, visitor, time_ms)
            self._add(number, time_ms, prefix)
        if self._wide and self.existence.is_there(number):
            self._wide.searched(query, number, time_ms)

    def _add(self, number: int, time_ms: int, prefix: str) -> None:
        self.searches.add(number, time_ms)
        self.pairs.add(prefix, number, time_ms)

    def _append(self, query: str) -> int:
        """Give a text the next number."""
        number = self.completions.add(query)
        if number >= 2 * self._letters_size:
            self._make_corrections(number)
        self._near.cache_clear()
        return number

    def append_all(self, queries: Sequence[str]) -> None:
        """Give texts without a number the next numbers, without making them exist."""
        for query in queries:
            self._append(query)

    def make_wide(self) -> None:
        """Rebuild the completions of wide prefixes from the queries that exist."""
        score = functools.partial(mixture, self.searches, self._weights)
        self._wide = WidePrefixes(self.completions, self.config.breadth, score)
        for number in np.flatnonzero(self.existence.exists).tolist() if self._wide else ():
            self._wide.searched(self.text(number), number, self.latest_ms)

    def _make_corrections(self, size: int) -> None:
        """Take the letters that corrections try from the first `size` queries."""
        self._corrections = Corrections(self.completions)
        self._near = functools.lru_cache(_CORRECTED)(self._corrections.near)
        self._letters_size = max(size, 1)

    def __getstate__(self) -> dict[str, Any]:
        """All but the caches, so that a copy in another process continues in the same way."""
        state = {name: value for name, value in vars(self).items() if name != "_near"}
        return state | {"_order": next(self._order)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = itertools.count(state["_order"])
        self._near = functools.lru_cache(_CORRECTED)(self._corrections.near)

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self.completions)

    def number(self, text: str) -> int:
        """The number of a query, -1 if it has none."""
        return self.completions.number(text)

    def text(self, number: int) -> str:
        """The query of that number."""
        return self.completions[number]

    def exists(self, number: int) -> bool:
        """Whether enough visitors have searched the query of that number; False for -1."""
        return self.existence.is_there(number)

    def counts(self, numbers: np.ndarray) -> np.ndarray:
        """The decayed counts of searches [n, half-lives] as of the moment."""
        return self.searches.at(numbers, self.moment)


def mixture(
    searches: DecayedCounts, weights: np.ndarray, numbers: np.ndarray, time_ms: float
) -> np.ndarray:
    """The counts [n] of queries at that time, mixed over the half-lives by `weights` [K]."""
    return searches.at(numbers, time_ms) @ weights
