"""The users of the simulated shop, with profiles and tastes, and their visits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import DAY_MS, HOUR_MS
from onesug_jax.logs.simulate.rates import Rates
from onesug_jax.logs.simulate.world import World

START_MS = 1_756_684_800_000  # 2025-09-01 00:00 UTC
GENDERS = ("F", "M", "unknown")
AGES = ("18-23", "24-30", "31-40", "41-50", "50+")
# Relative number of visits in each hour of the day.
_HOURS = np.array(
    [2, 1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 8, 9, 8, 8, 8, 8, 9, 10, 12, 13, 12, 8, 4], float
)
_SLOTS = 96  # a user has at most one visit in a quarter of an hour


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of people. Shares are of requests, weights are in log-odds."""

    visit_length: float = 1.9  # searches in a visit, mean
    # The first search of a visit is one of these, else by popularity:
    return_share: float = 0.20  # one of the last searches
    word_share: float = 0.12  # a query with a favourite word
    shelf_share: float = 0.10  # a query of a favourite shelf
    # A later search is one of these, else by popularity:
    refine_share: float = 0.40  # shares a word with the search before
    stay_share: float = 0.15  # is of the same shelf
    taste: float = 2.2  # weight of favourite words on a shelf and in a refinement
    longer: float = 1.2  # weight of longer queries in a refinement
    other: float = 2.3  # negative weight of the search before in a refinement
    typo_share: float = 0.006  # prefixes with two neighbouring letters swapped
    noticed: float = 0.72  # probability that the first place is noticed; lower places have less
    stale_days: int = 1  # age in days of the latest searches counted in the shown list
    item_clicks: float = 0.55  # approximate share of requests with a clicked item
    orders: float = 0.38  # approximate share of those with an order

    def __post_init__(self):
        for names in ("return_share word_share shelf_share", "refine_share stay_share"):
            shares = [getattr(self, name) for name in names.split()]
            if min(shares) < 0 or sum(shares) > 1 + 1e-9:
                raise UserError(
                    f"Behaviour {', '.join(names.split())}: expected shares of at least 0 that sum "
                    f"to at most 1, found {shares}"
                )


@dataclass(frozen=True)
class People:
    """U users: profile and tastes."""

    gender: np.ndarray  # [U] number in GENDERS
    age: np.ndarray  # [U] number in AGES
    shelves: np.ndarray  # [U, 4] favourite first
    words: np.ndarray  # [U, F] favourite words


def make_people(rng: np.random.Generator, world: World, users: int) -> People:
    """Profiles, then favourite shelves and words, which depend on gender and (shelves) age."""
    gender = rng.choice(3, users, p=[0.45, 0.40, 0.15])
    age = rng.choice(5, users, p=[0.15, 0.27, 0.28, 0.18, 0.12])
    tilt = rng.normal(0, 1.0, (3, world.shelves)), rng.normal(0, 0.8, (5, world.shelves))
    tilt[0][2] = 0.0
    liking = tilt[0][gender] + tilt[1][age] + rng.gumbel(0, 1, (users, world.shelves))
    shelves = np.argsort(-liking, axis=1)[:, : min(4, world.shelves)]
    # A favourite word is the best by gender and rarity among words of six queries of a shelf.
    tried, favourites = np.full(users, 6), []
    rates, hour = Rates(world, np.log(world.popularity)[None]), np.zeros(users, np.int64)
    word_tilt = rng.normal(0, 0.8, (3, world.words)) + world.leaning
    word_tilt[2] = 0.0
    for _ in range(6):
        shelf = shelves[np.arange(users), rng.integers(0, shelves.shape[1], users) // 2]
        query = rates.draw(rng, hour, world.words + shelf, tried).reshape(users, -1)
        at = rng.integers(0, world.length[query])
        words = world.words_of[query, at]
        score = (
            word_tilt[gender[:, None], words] + world.rarity[words] + rng.gumbel(0, 1, words.shape)
        )
        favourites.append(words[np.arange(users), score.argmax(1)])
    return People(gender, age, shelves, np.stack(favourites, 1))


@dataclass(frozen=True)
class Visits:
    """R requests without their texts."""

    user: np.ndarray  # [R] rows are sorted by user, then by time
    visit: np.ndarray  # [R]
    opening: np.ndarray  # [R] bool: first search of a visit
    time: np.ndarray  # [R] milliseconds
    hour: np.ndarray  # [R] hours since the log began


def make_visits(rng, users: int, requests: int, days: int, behaviour: Behaviour) -> Visits:
    """Random visits: a few people come often, and most visits are in the evening."""
    drawn = int(1.3 * requests / behaviour.visit_length) + 16
    activity = rng.lognormal(0, 1.1, users)
    odds = np.cumsum(activity / activity.sum())
    quarter = np.repeat(_HOURS, 4) / (4 * _HOURS.sum())
    chosen = np.zeros(0, np.int64)
    while True:
        user = np.minimum(np.searchsorted(odds, rng.random(drawn)), users - 1)
        slot = rng.integers(0, days, drawn) * _SLOTS + rng.choice(_SLOTS, drawn, p=quarter)
        key, first = np.unique(
            np.concatenate([chosen, user * (days * _SLOTS) + slot]), return_index=True
        )
        chosen = key[np.argsort(first)]
        length = np.minimum(rng.geometric(1 / behaviour.visit_length, len(chosen)), 8)
        end = np.cumsum(length)
        if end[-1] >= requests:
            break
    enough = int(np.searchsorted(end, requests)) + 1
    chosen, length = chosen[:enough], length[:enough]
    length[-1] -= int(end[enough - 1]) - requests
    order = np.argsort(chosen)
    chosen, length = chosen[order], length[order]
    opening = np.zeros(requests, bool)
    starts = np.cumsum(length) - length
    opening[starts] = True
    visit = np.repeat(np.arange(enough), length)
    gap = np.minimum(rng.lognormal(3.2, 0.7, requests), 90.0) * 1000
    gap[starts] = rng.random(enough) * 240_000
    elapsed = np.cumsum(gap)
    within = elapsed - np.repeat(elapsed[starts] - gap[starts], length)
    user, slot = np.divmod(chosen[visit], days * _SLOTS)
    time = START_MS + slot * (DAY_MS // _SLOTS) + within.astype(np.int64)
    return Visits(user, visit, opening, time, (time - START_MS) // HOUR_MS)
