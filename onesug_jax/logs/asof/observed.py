"""What was observed of a shop, as it becomes visible: the half of the as-of state that counts.

Searches are observed as they happen and become visible `freshness` later, in the order of their
times. `state.py` adds the half that answers requests from it.
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
      queries: distinct texts in code point order; their places are their numbers. They need not
        exist yet: a query exists once `min_users` different visitors have searched it.
      config: half-lives, freshness, sizes.
      spare: most queries that get a number later, from N on, in the order in which they come to
        exist.

    Attributes:
      moment: statistics are of what happened before it, milliseconds since 1970.
      completions: all texts by number.
      latest_ms: time of the latest search that was observed; 0: none was.
      first: how many queries had a number at the start, N.
      refused: searches of queries that found no spare number.
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
        self._correct_by(len(queries))
        self.moment, self._frozen = -np.inf, np.inf
        self.latest_ms = self.refused = 0
        self.make_wide()
        self._order = itertools.count()
        # Searches, orders and item clicks of the latest day.
        self.repeats = [Repeats(config.max_repeats) for _ in range(3)]
        self.named = False  # whether anybody had a name so far
        self._searched: list[tuple] = []  # heaps by time: what is not visible yet
        self._converted: list[tuple] = []
        self._remembered: list[tuple] = []

    # ------------------------------------------------------------------ what happens

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
        """Takes note of a search and what came of it; nothing of it is visible yet.

        Args:
          time_ms: when; of events of one time none sees another.
          user: whose history it enters; "": nobody's.
          prefix, query: what was typed and what was searched, normalised.
          level: its `Level` so far; `convert` raises it.
          visitor: who counts as one of `min_users`; None: as `visitor_of` has it of the user.
          shown: the list that was shown for the prefix; empty: unknown.
        """
        self.latest_ms = max(self.latest_ms, time_ms)
        order = next(self._order)
        who = visitor_of(user, "", time_ms) if visitor is None else visitor
        heapq.heappush(self._searched, (time_ms, order, prefix, query, who, shown))
        self.remember(time_ms, user, query)
        if level > Level.CLICK:
            self.convert(time_ms, query, level, visitor=who)

    def remember(self, time_ms: int, user: str, query: str) -> None:
        """Takes note of a search for its user's history alone; "": nobody's."""
        if user:
            heapq.heappush(self._remembered, (time_ms, next(self._order), user, query))

    def convert(
        self, time_ms: int, query: str, level: int, before: int = Level.CLICK, *, visitor: str
    ) -> None:
        """Takes note of an order or item click that followed a visitor's search of `time_ms`.

        An order counts as an item click too, so that what comes later only adds; `before` is the
        level that was noted already.
        """
        added = (
            before < Level.ORDER <= level,
            before < Level.ITEM_CLICK <= level,
        )
        if any(added):
            heapq.heappush(self._converted, (time_ms, next(self._order), query, added, visitor))

    def freeze(self, moment_ms: int) -> None:
        """From now on nothing of that moment or later becomes visible: what a model that is never
        updated knows. Histories go on, unless they follow `freshness`.
        """
        self._frozen = moment_ms

    def forget(self, user: str) -> None:
        """Removes a user's history; counts are of all users and stay."""
        self.histories.forget(user)
        self._remembered = [one for one in self._remembered if one[2] != user]
        heapq.heapify(self._remembered)

    def become(self, other: Observed) -> None:
        """Goes on as another state, of the same queries, which nobody else goes on with."""
        vars(self).update(vars(other))

    def at(self, time_ms: float) -> None:
        """Makes visible what a request of that time sees."""
        config = self.config
        frozen = self._frozen
        self.moment = max(self.moment, min(time_ms - config.freshness_ms, frozen))
        searched, until = self._searched, self.moment
        while searched and searched[0][0] < until:
            time, _, prefix, query, who, shown = heapq.heappop(searched)
            self.named = self.named or not who.startswith(NAMELESS)
            if not self._counts(0, time, who, query):
                continue
            self._count(time, prefix, query, who)
            if shown and config.shown:
                self.shown.add(prefix, shown, time)
        delay = max(config.conversion_delay_ms, config.freshness_ms)
        until = min(time_ms - delay, frozen)
        converted, number_of = self._converted, self.completions.number
        while converted and converted[0][0] < until:
            time, _, query, ends, who = heapq.heappop(converted)
            added = [
                end and self._counts(kind, time, who, query) for kind, end in enumerate(ends, 1)
            ]
            number = number_of(query)
            if number >= 0:
                self.conversions[number] += added
            else:
                self.existence.converted(query, added)
        own = config.history_freshness_ms
        until = self.moment if own is None else time_ms - own
        remembered = self._remembered
        while remembered and remembered[0][0] < until:
            time, _, user, query = heapq.heappop(remembered)
            self.histories.add(user, query, time)

    @property
    def end_ms(self) -> int:
        """The first time at which a request sees all that was observed."""
        config = self.config
        delays = (config.freshness_ms, config.conversion_delay_ms, config.history_freshness_ms or 0)
        return int(self.latest_ms + max(delays) + 1)

    def settle(self) -> None:
        """Makes all that was observed visible."""
        self.at(self.end_ms)

    def postpone(self, ms: int) -> None:
        """Takes all that is visible as if it had happened so much later; nothing may wait to
        become visible (`settle`).
        """
        assert not self._searched and not self._converted, "what waits keeps its time"
        self.searches.reference += ms
        self.pairs.postpone(ms)
        self.shown.postpone(ms)
        self.latest_ms += ms
        self.moment += ms

    def _counts(self, kind: int, time_ms: int, who: str, query: str) -> bool:
        """Whether an event moves the counts: a visitor's few first of a day, but every one where
        nobody has a name.
        """
        if not self.named and who.startswith(NAMELESS):
            return True
        return self.repeats[kind].counts(time_ms, who, query)

    def _count(self, time_ms: int, prefix: str, query: str, visitor: str) -> None:
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
        """Gives a text that begins to exist the next number."""
        number = self.completions.add(query)
        if number >= 2 * self._letters_of:
            self._correct_by(number)
        self._meant.cache_clear()
        return number

    def append_all(self, queries: Sequence[str]) -> None:
        """Gives texts that have no number the next ones, without making them exist."""
        for query in queries:
            self._append(query)

    def make_wide(self) -> None:
        """Begins anew to list the most counted completions of prefixes of very many."""
        self._wide = WidePrefixes(self.completions, self.config.breadth, self._mixture)
        for number in np.flatnonzero(self.existence.exists).tolist() if self._wide else ():
            self._wide.searched(self.text(number), number, self.latest_ms)

    def _correct_by(self, size: int) -> None:
        """Corrections try the letters of the first `size` queries."""
        self._corrections = Corrections(self.completions)
        self._meant = functools.lru_cache(_CORRECTED)(self._corrections.near)
        self._letters_of = max(size, 1)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is cached: a copy of it in another process goes on alike."""
        state = {name: value for name, value in vars(self).items() if name != "_meant"}
        return state | {"_order": next(self._order)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = itertools.count(state["_order"])
        self._meant = functools.lru_cache(_CORRECTED)(self._corrections.near)

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

    def _mixture(self, numbers: np.ndarray, time_ms: float) -> np.ndarray:
        """How much queries [n] count at that time: the mixture of their decayed counts."""
        return self.searches.at(numbers, time_ms) @ self._weights
