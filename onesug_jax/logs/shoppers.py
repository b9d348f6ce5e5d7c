"""Who comes to the simulated shop: people with tastes, their visits, and what they search.

All users are computed at once, one request of each at a time, because a request depends on the ones
before it by the same user and on nobody else's. `logs.simulate` makes a log of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.world import World

DAY_MS = 86_400_000
START_MS = 1_756_684_800_000  # 2025-09-01 00:00 UTC
GENDERS = ("F", "M", "unknown")
AGES = ("18-23", "24-30", "31-40", "41-50", "50+")
# How busy each hour of the day is.
_HOURS = np.array(
    [2, 1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 8, 9, 8, 8, 8, 8, 9, 10, 12, 13, 12, 8, 4], float
)
_SLOTS = 96  # a user has at most one visit in a quarter of an hour
_MEMORY = 16  # searches a user may come back to


@dataclass(frozen=True)
class Behaviour:
    """How people act. Shares are of requests, strengths are in log-odds."""

    visit_length: float = 1.9  # searches in a visit, mean
    return_share: float = 0.55  # a visit opens with a search done before
    word_share: float = 0.30  # ... or with one that holds a favourite word
    refine_share: float = 0.65  # a later search of a visit refines the one before
    taste: float = 2.2  # pull of a favourite word among candidate queries
    typo_share: float = 0.006  # prefixes with two neighbouring letters swapped
    noticed: float = 0.72  # first place of the list is looked at; lower places fall off
    stale_days: int = 3  # the shown list counts searches up to so many days ago
    item_clicks: float = 0.55  # share of requests with a clicked item, about
    orders: float = 0.38  # share of those with an order, about


@dataclass(frozen=True)
class People:
    """U users: profile and tastes."""

    gender: np.ndarray  # [U] number in GENDERS
    age: np.ndarray  # [U] number in AGES
    shelves: np.ndarray  # [U, 4] categories, the dearest first
    words: np.ndarray  # [U, F] favourite words


def make_people(rng: np.random.Generator, world: World, users: int) -> People:
    """Profile, then a few shelves and favourite words, both tilted by gender and age."""
    gender = rng.choice(3, users, p=[0.45, 0.40, 0.15])
    age = rng.choice(5, users, p=[0.15, 0.27, 0.28, 0.18, 0.12])
    tilt = rng.normal(0, 1.0, (3, world.shelves)), rng.normal(0, 0.8, (5, world.shelves))
    tilt[0][2] = 0.0
    liking = tilt[0][gender] + tilt[1][age] + rng.gumbel(0, 1, (users, world.shelves))
    shelves = np.argsort(-liking, axis=1)[:, : min(4, world.shelves)]
    # A favourite word comes from a query of one's own shelves; of several, the profile's pick.
    tried, favourites = 6, []
    word_tilt = rng.normal(0, 0.8, (3, world.words)) + world.leaning
    word_tilt[2] = 0.0
    for _ in range(6):
        shelf = shelves[np.arange(users), rng.integers(0, shelves.shape[1], users) // 2]
        found = world.draw(rng, world.words + shelf, tried)
        at = rng.integers(0, world.length[found])
        words = world.words_of[found, at]
        score = (
            word_tilt[gender[:, None], words] + world.rarity[words] + rng.gumbel(0, 1, words.shape)
        )
        favourites.append(words[np.arange(users), score.argmax(1)])
    return People(gender, age, shelves, np.stack(favourites, 1))


@dataclass(frozen=True)
class Visits:
    """R requests without their text: who comes when."""

    user: np.ndarray  # [R] rows are sorted by user, then by time
    visit: np.ndarray  # [R]
    opening: np.ndarray  # [R] bool: first search of a visit
    time: np.ndarray  # [R] milliseconds
    day: np.ndarray  # [R]


def make_visits(rng, users: int, requests: int, days: int, behaviour: Behaviour) -> Visits:
    """Who comes when, for how many searches: a few people come often, evenings are busy."""
    wanted = int(1.3 * requests / behaviour.visit_length) + 16
    activity = rng.lognormal(0, 1.1, users)
    odds = np.cumsum(activity / activity.sum())
    quarter = np.repeat(_HOURS, 4) / (4 * _HOURS.sum())
    chosen = np.zeros(0, np.int64)
    while True:
        user = np.minimum(np.searchsorted(odds, rng.random(wanted)), users - 1)
        slot = rng.integers(0, days, wanted) * _SLOTS + rng.choice(_SLOTS, wanted, p=quarter)
        key, first = np.unique(
            np.concatenate([chosen, user * (days * _SLOTS) + slot]), return_index=True
        )
        chosen = key[np.argsort(first)]
        length = np.minimum(rng.geometric(1 / behaviour.visit_length, len(chosen)), 8)
        end = np.cumsum(length)
        if end[-1] >= requests:
            break
    kept = int(np.searchsorted(end, requests)) + 1
    chosen, length = chosen[:kept], length[:kept]
    length[-1] -= int(end[kept - 1]) - requests
    order = np.argsort(chosen)
    chosen, length = chosen[order], length[order]
    opening = np.zeros(requests, bool)
    starts = np.cumsum(length) - length
    opening[starts] = True
    visit = np.repeat(np.arange(kept), length)
    gap = np.minimum(rng.lognormal(3.2, 0.7, requests), 90.0) * 1000
    gap[starts] = rng.random(kept) * 240_000
    passed = np.cumsum(gap)
    within = passed - np.repeat(passed[starts] - gap[starts], length)
    user, slot = np.divmod(chosen[visit], days * _SLOTS)
    time = START_MS + slot * (DAY_MS // _SLOTS) + within.astype(np.int64)
    return Visits(user, visit, opening, time, slot // _SLOTS)


def make_searches(
    rng, world: World, people: People, visits: Visits, behaviour: Behaviour
) -> np.ndarray:
    """The query of every row [R]: the n-th request of all users at once, n = 0, 1, ..."""
    rows = len(visits.user)
    searched = np.zeros(rows, np.int64)
    present, first, often = np.unique(visits.user, return_index=True, return_counts=True)
    order = np.argsort(-often, kind="stable")
    present, first, often = present[order], first[order], often[order]
    memory = np.zeros((len(present), _MEMORY), np.int64)
    tried = 8
    for step in range(int(often[0])):
        active = int(np.searchsorted(-often, -step))  # users with more than `step` requests
        row, who = first[:active] + step, present[:active]
        opening, day = visits.opening[row], visits.day[row]
        before = memory[:active, (step - 1) % _MEMORY]
        choice = rng.random(active)
        # Where the candidates come from: a shelf, a favourite word, or a word of the search just
        # done.
        rank = np.minimum(rng.geometric(0.5, active) - 1, people.shelves.shape[1] - 1)
        shelf = np.where(opening, people.shelves[who, rank], world.shelf[before])
        group = world.words + shelf
        favourite = people.words[who, rng.integers(0, people.words.shape[1], active)]
        loved = opening & (choice < behaviour.return_share + behaviour.word_share)
        group = np.where(loved, favourite, group)
        word = world.words_of[before, rng.integers(0, world.length[before])]
        refining = ~opening & (choice < behaviour.refine_share)
        group = np.where(refining, word, group)
        found = world.draw(rng, group, tried)
        words = world.words_of[found]  # [active, tried, words]
        liked = (words[..., None] == people.words[who][:, None, None, :]).any(-1).sum(-1)
        score = behaviour.taste * liked + world.drift[day[:, None], found]
        score += world.query_leaning[people.gender[who][:, None], found]
        longer = (world.length[found] > world.length[before][:, None]) & (found != before[:, None])
        score += refining[:, None] * (2.0 * longer - 4.0 * (found == before[:, None]))
        score += rng.gumbel(0, 1, score.shape)
        query = found[np.arange(active), score.argmax(1)]
        # Coming back: to a recent search rather than an old one.
        back = rng.geometric(0.18, active)
        known = np.minimum(step, _MEMORY)
        returning = opening & (choice < behaviour.return_share) & (back <= known)
        query = np.where(returning, memory[np.arange(active), (step - back) % _MEMORY], query)
        memory[:active, step % _MEMORY] = query
        searched[row] = query
    return searched
