"""Popularity as cumulative sums, from which the queries of a group are drawn in a given hour."""

from __future__ import annotations

import functools

import numpy as np

from onesug_jax.logs.simulate.world import World


class Rates:
    """Queries of each group by their popularity in H hours.

    `log_rate`: [H, Q], minus infinity for a query that does not exist.
    """

    def __init__(self, world: World, log_rate: np.ndarray):
        self.world = world
        self.rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
        mass = np.cumsum(self.rate[:, world.member].ravel())
        self._mass = np.concatenate([[0.0], mass])

    def _span(self, hour: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = hour * len(self.world.member)
        return start + self.world.ends[group], start + self.world.ends[group + 1]

    def empty(self, hour: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Whether none of a group's queries exists in that hour; arrays that broadcast."""
        first, last = self._span(hour, group)
        return self._mass[first] == self._mass[last]

    def draw(
        self, rng: np.random.Generator, hour: np.ndarray, group: np.ndarray, tried: np.ndarray
    ) -> np.ndarray:
        """Random queries of each row's group by popularity, with repeats: `tried` [N] of each row,
        concatenated: [sum of `tried`].

        The groups must not be `empty` in their hours.
        """
        first, last = self._span(hour, group)
        low, high = self._mass[first], self._mass[last]
        at = rng.random(int(tried.sum()))
        at = np.repeat(low, tried) + at * np.repeat(high - low, tried)
        place = np.searchsorted(self._mass, at, side="right") - 1
        place = np.clip(place, np.repeat(first, tried), np.repeat(last - 1, tried))
        return self.world.member[place % len(self.world.member)]

    @functools.cached_property
    def totals(self) -> np.ndarray:
        """Sum of rate * exp(leaning of a gender) over each group: [3, H, groups]."""
        world = self.world
        weights = world.leaning_pull[:, None, world.member]
        return np.add.reduceat(self.rate[:, world.member] * weights, world.ends[:-1], axis=2)
