"""Time in the simulated shop: the hidden popularity of every query in each hour.

    popularity of q in hour t = base * launch * (1 + bursts) * drift * hours * weekdays

A launched query does not exist before its launch, rises within hours and fades over days. Bursts
are short peaks of single queries, or of all queries with one word or on one shelf. Drift is a
random walk of each query. Hours and weekdays are factors of a shelf. The popularity is constant
within an hour, so that the probability of every choice can be computed (`oracle`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.simulate.world import World

HOURS = 24
_BEFORE = 10  # days before the log in which launches may happen
_NO_LAUNCH = -(10**6)


@dataclass(frozen=True)
class Timeline:
    """The strength of each effect of time; 0 turns it off.

    Attributes:
      launches: share of the queries that appear in a month (30 days), 0 to 1.
      bursts: mean number of bursts of a query in a month.
      group_bursts: mean number of bursts of a word or a shelf in a month.
      drift: standard deviation of the daily step of a query's log popularity.
      hours: mean amplitude of a shelf's log popularity over the hours of a day.
      weekdays: standard deviation of a shelf's log popularity over weekdays.
    """

    launches: float = 0.15
    bursts: float = 1.0
    group_bursts: float = 0.5
    drift: float = 0.08
    hours: float = 0.6
    weekdays: float = 0.3

    def __post_init__(self):
        for name, value in vars(self).items():
            most = 1.0 if name == "launches" else np.inf
            if not 0 <= value <= most:
                raise UserError(f"Timeline {name}: expected 0 to {most:g}, found {value}")


@dataclass(frozen=True)
class Bursts:
    """N short peaks: factors 1 + height of the popularity; the height has a half-life."""

    target: np.ndarray  # [N] number of a query or of a group
    start: np.ndarray  # [N] hour
    height: np.ndarray  # [N]
    half_life: np.ndarray  # [N] hours

    def log_factor(self, size: int, first_hour: int) -> np.ndarray:
        """Log factors of all targets in the 24 hours from `first_hour`: [24, size]."""
        total = np.zeros((HOURS, size))
        last = self.start + 10 * self.half_life
        now = np.flatnonzero((self.start < first_hour + HOURS) & (last > first_hour))
        for hour in range(HOURS):
            age = first_hour + hour - self.start[now]
            peak = self.height[now] * 0.5 ** (np.maximum(age, 0) / self.half_life[now])
            total[hour] = np.bincount(self.target[now], peak * (age >= 0), minlength=size)
        return np.log1p(total)


@dataclass(frozen=True)
class Popularity:
    """The hidden popularity of Q queries on S shelves over a number of days."""

    world: World
    launch: np.ndarray  # [Q] hour of the launch, `_NO_LAUNCH` for most
    peak: np.ndarray  # [Q] height of the launch relative to the later popularity
    half_life: np.ndarray  # [Q] of that height, in hours
    bursts: Bursts  # of queries
    group_bursts: Bursts  # of words and shelves
    drift: np.ndarray  # [days + 1, Q] log factor at midnight
    hours: np.ndarray  # [S, 24] log factor
    weekdays: np.ndarray  # [S, 7] log factor; a log begins on a Monday

    def of_day(self, day: int) -> tuple[np.ndarray, np.ndarray]:
        """Log popularity in each hour of a day: of queries [24, Q], of shelves [24, S].

        A query is at minus infinity before its launch. The log popularity of a shelf consists of
        its hours, weekdays and bursts, and is part of that of its queries.
        """
        world, first = self.world, day * HOURS
        group = self.group_bursts.log_factor(world.everything, first)
        shelf = self.hours.T + self.weekdays[:, day % 7] + group[:, world.words :]
        part = ((np.arange(HOURS) + 0.5) / HOURS)[:, None]
        log = np.log(world.popularity) + shelf[:, world.shelf]
        log += self.drift[day] * (1 - part) + self.drift[day + 1] * part
        for column in range(world.words_of.shape[1]):
            word = world.words_of[:, column]
            log += np.where(word >= 0, group[:, word], 0.0)
        log += self.bursts.log_factor(len(world.queries), first)
        recent = np.flatnonzero(self.launch > _NO_LAUNCH)
        age = np.arange(first, first + HOURS)[:, None] - self.launch[recent]
        fading = np.log1p(self.peak[recent] * 0.5 ** (np.maximum(age, 0) / self.half_life[recent]))
        rising = np.log1p(-np.exp2(-(np.maximum(age, 0) + 1) / 3.0))
        log[:, recent] += np.where(age >= 0, fading + rising, -np.inf)
        return log, shelf


def make_popularity(
    rng: np.random.Generator, world: World, timeline: Timeline, days: int
) -> Popularity:
    """Draw launches, bursts, drift and profiles for `days` days."""
    size, span = len(world.queries), days + _BEFORE
    # The most popular query always exists.
    launched = rng.random(size) < min(timeline.launches * span / 30, 0.9)
    launched[int(np.argmax(world.popularity))] = False
    launch = rng.integers(-_BEFORE * HOURS, days * HOURS, size)
    steps = rng.normal(0, 1, (days + 1, size)) * timeline.drift
    hour = np.arange(HOURS) - rng.uniform(0, HOURS, (world.shelves, 1))
    swing = timeline.hours * rng.uniform(0.5, 1.5, (world.shelves, 1))
    return Popularity(
        world=world,
        launch=np.where(launched, launch, _NO_LAUNCH),
        peak=np.where(launched, rng.lognormal(1.4, 0.6, size), 0.0),
        half_life=HOURS * rng.uniform(1.5, 8.0, size),
        bursts=_bursts(rng, timeline.bursts, size, days, 2.5, 0.8),
        group_bursts=_bursts(rng, timeline.group_bursts, world.everything, days, 1.4, 0.5),
        drift=np.cumsum(steps, axis=0),
        hours=swing * np.cos(2 * np.pi * hour / HOURS),
        weekdays=timeline.weekdays * rng.normal(0, 1, (world.shelves, 7)),
    )


def _bursts(rng, a_month: float, size: int, days: int, height: float, spread: float) -> Bursts:
    number = rng.poisson(a_month * size * (days + 2) / 30)
    return Bursts(
        target=rng.integers(0, size, number),
        start=rng.integers(-2 * HOURS, days * HOURS, number),
        height=rng.lognormal(height, spread, number),
        half_life=np.exp(rng.uniform(np.log(3.0), np.log(60.0), number)),
    )
