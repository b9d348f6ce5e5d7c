"""The outcome of a simulated request: the shown list, the click in it, items and orders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.asof.completions import best
from onesug_jax.logs.simulate.people import Behaviour, People, Visits
from onesug_jax.logs.simulate.prefixes import Alphabet
from onesug_jax.logs.simulate.timeline import HOURS, Popularity
from onesug_jax.logs.simulate.world import World

_SHOWN = 10


def show(
    rng, popularity: Popularity, alphabet: Alphabet, visits: Visits, searched: np.ndarray,
    prefixes: list[str], stale_days: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The ten most searched completions by counts `stale_days` old: (queries [sum], offsets [R +
    1]).

    The counts start with random searches of about four days, by the popularity at the start.
    """
    rows, order, day = len(searched), alphabet.order, visits.hour // HOURS
    days, size = int(day.max()) + 1, len(order)
    place = np.empty_like(order)
    place[order] = np.arange(size)
    spans, span_of = np.unique(alphabet.ranges(prefixes), axis=0, return_inverse=True)
    span_of = span_of.reshape(-1)
    rate = np.exp(popularity.of_day(0)[0][0])[order]
    counts = rng.multinomial(max(4 * rows // days, 4 * size), rate / rate.sum())
    offsets = np.zeros(rows + 1, np.int64)
    pieces: list[np.ndarray] = [np.zeros(0, np.int64)] * rows
    for today in range(days):
        if today >= stale_days:
            counts += np.bincount(place[searched[day == today - stale_days]], minlength=size)
        of_day = np.flatnonzero(day == today)
        needed, list_of = np.unique(span_of[of_day], return_inverse=True)
        lists = [best(counts[first:last], _SHOWN) + first for first, last in spans[needed]]
        for row, at in zip(of_day.tolist(), list_of.tolist(), strict=True):
            pieces[row] = lists[at]
    offsets[1:] = np.cumsum([len(piece) for piece in pieces])
    return order[np.concatenate([*pieces, np.zeros(0, np.int64)])], offsets


def click(rng, searched, shown, offsets, noticed: float) -> np.ndarray:
    """Place in the list where the user noticed and clicked the query, -1 if it was typed; [R]."""
    rows = len(searched)
    owner = np.repeat(np.arange(rows), np.diff(offsets))
    hit = np.flatnonzero(shown == searched[owner])
    place = np.full(rows, -1, np.int64)
    place[owner[hit]] = hit - offsets[owner[hit]]
    seen = rng.random(rows) < noticed * 0.85 ** np.maximum(place, 0)
    return np.where(seen, place, -1)


@dataclass(frozen=True)
class Trade:
    """Probabilities of clicks on items and of orders.

    Clicks follow the browsing appeal of the query, orders its commercial intent and the user's
    taste. These traits differ, so the queries that sell most are not those searched most. The
    shifts set the mean shares of the shop.
    """

    world: World
    people: People
    click_shift: float
    order_shift: float

    @classmethod
    def fit(cls, world, people, user, searched, behaviour: Behaviour) -> Trade:
        """The `Trade` with which the searches of a log have the mean shares of `behaviour`."""
        appeal, intent = cls(world, people, 0.0, 0.0)._scores(user, searched)
        return cls(
            world, people, _shift(appeal, behaviour.item_clicks), _shift(intent, behaviour.orders)
        )

    def chances(self, user: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of a clicked item, and of an order after a click; [N] each."""
        appeal, intent = self._scores(user, query)
        return _logistic(appeal + self.click_shift), _logistic(intent + self.order_shift)

    def _scores(self, user, query):
        world, people = self.world, self.people
        words, favourites = world.words_of.T[:, query], people.words.T[:, user]
        taste = 0.7 * (people.shelves[user, 0] == world.shelf[query])
        for word in words:
            liked = np.zeros(len(query), bool)
            for favourite in favourites:
                liked |= word == favourite
            taste = taste + liked
        return world.appeal[query] + 0.3 * taste, world.intent[query] + 0.8 * taste


def buy(rng, trade: Trade, user: np.ndarray, searched: np.ndarray):
    """Numbers of clicked items (0 to 3) and of ordered ones among them; [R] each."""
    rows, (clicking, ordering) = len(searched), trade.chances(user, searched)
    clicks = rng.random(rows) < clicking
    orders = clicks & (rng.random(rows) < ordering)
    many = np.where(clicks, np.minimum(rng.geometric(0.6, rows), 3), 0)
    return many, np.where(orders, 1 + (rng.random(rows) < 0.08) * (many > 1), 0)


def _logistic(score: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-score))


def _shift(score: np.ndarray, mean: float) -> float:
    """The number to add to `score` so that the mean of its logistic over the rows is `mean`."""
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        if _logistic(score + middle).mean() < mean:
            low = middle
        else:
            high = middle
    return low
