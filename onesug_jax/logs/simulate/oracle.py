"""The best possible lists of a simulated log, by an oracle with the hidden state of the shop.

For a request it computes the posterior

    p(query | prefix, state)  ~  p(query | state) * p(length typed | query) * p(typing error)

exactly: `searches` has the first factor, `prefixes` the others. The state consists of the user's
profile and tastes, the user's searches before the request, the place in the visit, and the
popularity of every query in that hour. It does not contain the searched query or later events.
The 16 most probable queries have the best expected MRR and HR, so no model is better except by
chance. Requests that end with an order have a second list, by p(query, order | prefix, state).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.simulate import searches
from onesug_jax.logs.simulate.outcomes import Trade
from onesug_jax.logs.simulate.people import Behaviour, Visits
from onesug_jax.logs.simulate.prefixes import Alphabet, Lengths, origins
from onesug_jax.logs.simulate.rates import Rates
from onesug_jax.logs.simulate.timeline import Popularity

_CANDIDATES = 1 << 18  # candidates whose probabilities are computed at once


@dataclass(frozen=True)
class Best:
    """Lists of N requests, best first; -1 where a list is shorter than k."""

    queries: np.ndarray  # [N, k] by probability
    chances: np.ndarray  # [N, k] posterior probability of each
    for_orders: np.ndarray  # [N, k] by probability, given that the request ends with an order


class Oracle:
    """The oracle of a simulated shop."""

    def __init__(self, popularity: Popularity, trade: Trade, visits: Visits, behaviour: Behaviour):
        self.world, self.popularity, self.trade = popularity.world, popularity, trade
        self.visits, self.behaviour = visits, behaviour
        self.alphabet = Alphabet(self.world.queries)
        self.lengths = Lengths(int(self.world.characters.max()))

    def candidates(self, prefixes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All possible queries of each prefix: request [E], query [E], p(prefix | query) [E]."""
        beginnings = [
            (row, text, weight)
            for row, prefix in enumerate(prefixes)
            for text, weight in origins(prefix, self.behaviour.typo_share)
        ]
        row = np.array([entry[0] for entry in beginnings], np.int64)
        spans = self.alphabet.ranges([entry[1] for entry in beginnings])
        size = spans[:, 1] - spans[:, 0]
        at = np.repeat(spans[:, 0] - np.cumsum(size) + size, size) + np.arange(size.sum())
        owner, query = np.repeat(row, size), self.alphabet.order[at]
        weight = np.repeat([entry[2] for entry in beginnings], size)
        length = np.array([len(prefix) for prefix in prefixes])[owner]
        wide, characters = self.world.wide[query].astype(int), self.world.characters[query]
        return owner, query, weight * self.lengths.table[wide, characters, length]

    def best(
        self, rows: np.ndarray, prefixes: list[str], searched: np.ndarray, k: int = 16
    ) -> Best:
        """Lists for some rows of a log sorted by user and time.

        Args:
          rows: [N] row numbers. prefixes: the prefixes of these rows.
          searched: [R] queries of the whole log; only those before a row are in its state.
        """
        result = Best(*(np.full((len(rows), k), fill) for fill in (-1, 0.0, -1)))
        hours = self.visits.hour[rows]
        day = hours // 24
        for today in np.unique(day):
            log_rate, shelf_log = self.popularity.of_day(int(today))
            rates = Rates(self.world, log_rate)
            at = np.flatnonzero(day == today)
            for part in np.array_split(at, max(1, len(at) // 256)):
                self._fill(result, part, rates, shelf_log, rows, prefixes, searched)
        return result

    def _fill(self, result: Best, part, rates, shelf_log, rows, prefixes, searched) -> None:
        world, behaviour = self.world, self.behaviour
        user = self.visits.user[rows[part]]
        state = searches.state_of(self.trade.people, self.visits, searched, rows[part])
        parts = searches.make_parts(world, rates, shelf_log, state, behaviour)
        total = searches.totals(world, rates, state, parts, behaviour)
        owner, query, typed = self.candidates([prefixes[row] for row in part])
        chance = np.zeros(len(owner))
        for block in np.array_split(np.arange(len(owner)), 1 + len(owner) // _CANDIDATES):
            chance[block] = typed[block] * searches.chance(
                world, rates, state, parts, total, owner[block], query[block], behaviour
            )
        chance /= np.bincount(owner, chance, minlength=len(part))[owner]
        clicking, ordering = self.trade.chances(user[owner], query)
        for score, lists in (
            (chance, result.queries),
            (chance * clicking * ordering, result.for_orders),
        ):
            order = np.lexsort((query, -score, owner))
            begin = np.searchsorted(owner[order], np.arange(len(part)))
            place = np.arange(len(order)) - begin[owner[order]]
            order = order[(place < lists.shape[1]) & (score[order] > 0)]
            place = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
            lists[part[owner[order]], place] = query[order]
            if lists is result.queries:
                result.chances[part[owner[order]], place] = chance[order]
