"""The searches in the simulated shop: a mixture of simple choices with exact probabilities.

A request either returns to one of the user's last searches, or draws a query of one group by

    popularity now * weight of the gender * weight of favourite words * weight of a refinement

where the last two apply to some groups only. `make_parts` lists the choices and their shares:
`choose` draws from them, and `chance` gives the probability of any query. A request depends on
earlier requests of the same user only, so all users are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.simulate.people import Behaviour, People, Visits
from onesug_jax.logs.simulate.rates import Rates
from onesug_jax.logs.simulate.timeline import HOURS, Popularity
from onesug_jax.logs.simulate.world import World

MEMORY = 16  # searches to which a user may return
_BACK = 0.18 * 0.82 ** np.arange(MEMORY)  # probability of each, newest first
_TRIED = 1024  # queries drawn at once for few requests
_TASTED = 6  # times as many with weights of favourite words, as most of these are rejected
_BLOCK = 1 << 20  # members of groups that are processed at once


@dataclass(frozen=True)
class State:
    """The inputs of the choices of N requests, besides the popularity; no answer is among them."""

    hour: np.ndarray  # [N] hour of the day
    opening: np.ndarray  # [N] bool: first search of a visit
    memory: np.ndarray  # [N, MEMORY] earlier queries of the user, newest first, -1: none
    gender: np.ndarray  # [N]
    words: np.ndarray  # [N, F] favourite words
    shelves: np.ndarray  # [N, S] favourite shelves


@dataclass(frozen=True)
class Parts:
    """The mixture of N requests; the shares of a row sum to 1."""

    back: np.ndarray  # [N, MEMORY] share of each earlier query
    share: np.ndarray  # [N, K] share of each group
    group: np.ndarray  # [N, K]
    taste: np.ndarray  # [K] bool: favourite words have a weight
    refine: np.ndarray  # [K] bool: queries longer than the last, and that one, have a weight


def state_of(people: People, visits: Visits, searched: np.ndarray, rows: np.ndarray) -> State:
    """State of some `rows` of a log sorted by user and time; reads `searched` before them only."""
    user = visits.user[rows]
    back = rows[:, None] - np.arange(1, MEMORY + 1)
    own = (back >= 0) & (visits.user[np.maximum(back, 0)] == user[:, None])
    return State(
        hour=visits.hour[rows] % HOURS,
        opening=visits.opening[rows],
        memory=np.where(own, searched[np.maximum(back, 0)], -1),
        gender=people.gender[user],
        words=people.words[user],
        shelves=people.shelves[user],
    )


def make_parts(
    world: World, rates: Rates, shelf_log: np.ndarray, state: State, behaviour: Behaviour
) -> Parts:
    """The mixture of each request. `shelf_log`: [24, shelves] log popularity of shelves."""
    size, before = len(state.hour), state.memory[:, 0]
    opening, later = state.opening[:, None], ~state.opening[:, None]
    back = np.where(opening & (state.memory >= 0), behaviour.return_share * _BACK, 0.0)
    # Without an earlier search to return to, a user searches for a favourite word.
    missing = behaviour.return_share - back.sum(1, keepdims=True)
    favourites = state.words.shape[1]
    favourite = np.repeat((behaviour.word_share + missing) / favourites, favourites, axis=1)
    # By the user's order of shelves, and by their popularity now.
    rank = -np.log(2.0) * np.arange(state.shelves.shape[1])
    odds = np.exp(rank + shelf_log[state.hour[:, None], state.shelves])
    shelves = behaviour.shelf_share * odds / odds.sum(1, keepdims=True)
    word = world.words_of[before]
    refined = behaviour.refine_share * (word >= 0) / np.maximum(world.length[before], 1)[:, None]
    stay = np.full((size, 1), behaviour.stay_share)
    share = np.concatenate(
        [opening * favourite, opening * shelves, later * refined, later * stay, stay * 0], axis=1
    )
    group = np.concatenate(
        [
            state.words,
            world.words + state.shelves,
            np.maximum(word, 0),
            world.words + world.shelf[before][:, None],
            np.full((size, 1), world.everything),
        ],
        axis=1,
    )
    share[rates.empty(state.hour[:, None], group)] = 0.0
    share[:, -1] = np.maximum(1.0 - share.sum(1) - back.sum(1), 0.0)  # the rest: by popularity
    columns = np.repeat(np.arange(5), [favourites, state.shelves.shape[1], word.shape[1], 1, 1])
    return Parts(back, share, group, (columns > 0) & (columns < 4), columns == 2)


def _liked(world: World, state: State, owner: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Whether queries hold a favourite word of their rows: [E]."""
    words, liked = np.take(world.words_of.T, query, axis=1), np.zeros(len(query), bool)
    for favourite in np.take(state.words.T, owner, axis=1):
        for word in words:
            liked |= word == favourite
    return liked


def _refined(
    world: World, state: State, owner: np.ndarray, query: np.ndarray, behaviour: Behaviour
) -> np.ndarray:
    """Weights of queries in a refinement by their rows: [E]."""
    before = state.memory[owner, 0]
    longer = (world.length[query] > world.length[before]) & (query != before)
    weight = np.where(longer, np.exp(behaviour.longer), 1.0)
    return np.where(query == before, np.exp(-behaviour.other), weight)


def choose(rng, world: World, rates: Rates, state: State, parts: Parts, behaviour: Behaviour):
    """A random query for each request: [N], by exact rejection sampling from the popularity."""
    shares = np.cumsum(np.concatenate([parts.back, parts.share], axis=1), axis=1)
    column = (rng.random(len(shares))[:, None] * shares[:, -1:] >= shares).sum(1)
    query = state.memory[np.arange(len(shares)), np.minimum(column, MEMORY - 1)]
    waiting = np.flatnonzero(column >= MEMORY)
    column = column - MEMORY
    highest, liking = world.leaning_pull.max(1), np.exp(behaviour.taste)
    while len(waiting):
        where, gender = column[waiting], state.gender[waiting]
        group, taste, refine = parts.group[waiting, where], parts.taste[where], parts.refine[where]
        tried = min(max(4, _TRIED // len(waiting)), 256) * np.where(taste, _TASTED, 1)
        drawn = rates.draw(rng, state.hour[waiting], group, tried)
        owner = np.repeat(np.arange(len(waiting)), tried)
        bound = highest[gender] * np.where(taste, liking, 1.0)
        bound *= np.where(refine, np.exp(behaviour.longer), 1.0)
        threshold = rng.random(len(drawn)) * bound[owner]  # accepted if the weight is above it
        weight = world.leaning_pull[gender[owner], drawn]
        at = np.flatnonzero(refine[owner])
        weight[at] *= _refined(world, state, waiting[owner[at]], drawn[at], behaviour)
        accepted = threshold < weight
        # Favourite words are compared only where they decide.
        at = np.flatnonzero(~accepted & taste[owner] & (threshold < weight * liking))
        accepted[at] = _liked(world, state, waiting[owner[at]], drawn[at])
        accepted |= (world.ends[group + 1] - world.ends[group] == 1)[owner]  # a single member
        hit = np.flatnonzero(accepted)
        row, first = np.unique(owner[hit], return_index=True)
        query[waiting[row]] = drawn[hit[first]]
        waiting = np.delete(waiting, row)
    return query


def totals(world: World, rates: Rates, state: State, parts: Parts, behaviour: Behaviour):
    """Sum of rate * weight over the group of every part: [N, K]."""
    total = rates.totals[state.gender[:, None], state.hour[:, None], parts.group]
    row, column = np.nonzero((parts.share > 0) & parts.taste)
    group = parts.group[row, column]
    passed = np.cumsum(world.ends[group + 1] - world.ends[group])
    cuts = np.searchsorted(passed, np.arange(0, passed[-1] if len(passed) else 0, _BLOCK))
    for block in np.split(np.arange(len(row)), cuts[1:]):
        owner, query = world.members(group[block])
        at = row[block][owner]
        weight = rates.rate[state.hour[at], query]
        weight = weight * world.leaning_pull[state.gender[at], query]
        refining = np.flatnonzero(parts.refine[column[block]][owner])
        weight[refining] *= _refined(world, state, at[refining], query[refining], behaviour)
        weight[_liked(world, state, at, query)] *= np.exp(behaviour.taste)
        total[row[block], column[block]] = np.bincount(owner, weight, minlength=len(block))
    return total


def chance(
    world: World, rates: Rates, state: State, parts: Parts, total: np.ndarray, owner, query,
    behaviour: Behaviour,
) -> np.ndarray:  # fmt: skip
    """Probability that request `owner` [E] searches `query` [E]: [E]. `total`: of `totals`."""
    per = np.divide(parts.share, total, out=np.zeros_like(total), where=total > 0)
    rate = rates.rate[state.hour[owner], query]
    rate = rate * world.leaning_pull[state.gender[owner], query]
    liked = np.where(_liked(world, state, owner, query), np.exp(behaviour.taste), 1.0)
    words, shelf = world.words_of.T, world.words + world.shelf
    result = np.zeros(len(owner))
    for column in np.flatnonzero((parts.share > 0).any(0)):
        at = np.flatnonzero(per[owner, column])
        row, queries = owner[at], query[at]
        group = parts.group[row, column]
        inside = (shelf[queries] == group) | (group == world.everything)
        for word in words:
            inside |= word[queries] == group
        at, row, queries = at[inside], row[inside], queries[inside]
        chances = per[row, column] * rate[at]
        if parts.taste[column]:
            chances *= liked[at]
        if parts.refine[column]:
            chances *= _refined(world, state, row, queries, behaviour)
        result[at] += chances
    for back in range(MEMORY):
        result += (state.memory[owner, back] == query) * parts.back[owner, back]
    return result


def make_searches(
    rng, world: World, people: People, visits: Visits, popularity: Popularity, behaviour: Behaviour
) -> np.ndarray:
    """The query of every row [R]; within a day, the n-th requests of all users at once."""
    searched = np.full(len(visits.user), -1, np.int64)
    for day, rows in days_of(visits):
        log_rate, shelf_log = popularity.of_day(day)
        rates = Rates(world, log_rate)
        first = np.r_[True, visits.user[rows][1:] != visits.user[rows][:-1]]
        place = np.arange(len(rows)) - np.maximum.accumulate(
            np.where(first, np.arange(len(rows)), 0)
        )
        order = np.argsort(place, kind="stable")
        for step in np.split(rows[order], np.cumsum(np.bincount(place))[:-1]):
            state = state_of(people, visits, searched, step)
            parts = make_parts(world, rates, shelf_log, state, behaviour)
            searched[step] = choose(rng, world, rates, state, parts, behaviour)
    return searched


def days_of(visits: Visits) -> Iterator[tuple[int, np.ndarray]]:
    """Each day that has requests, with its rows in order."""
    day = visits.hour // HOURS
    order = np.argsort(day, kind="stable")
    numbers, starts = np.unique(day[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
