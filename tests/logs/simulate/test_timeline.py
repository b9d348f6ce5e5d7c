"""The effects of time, one by one; without them popularity is constant."""

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.simulate.people import Behaviour, make_people, make_visits
from onesug_jax.logs.simulate.searches import make_searches
from onesug_jax.logs.simulate.timeline import HOURS, Timeline, make_popularity
from onesug_jax.logs.simulate.world import build_world

DAYS = 28
OFF = dict.fromkeys(vars(Timeline()), 0.0)


@pytest.fixture(scope="module")
def world():
    return build_world(np.random.default_rng(0), queries=None, language="en", distinct=1000)


def popularity_with(world, days=DAYS, **effects):
    return make_popularity(np.random.default_rng(1), world, Timeline(**{**OFF, **effects}), days)


def factors(world, **effects):
    """Log popularity beyond the base, hour by hour: [DAYS * 24, Q]."""
    popularity = popularity_with(world, **effects)
    hours = np.concatenate([popularity.of_day(day)[0] for day in range(DAYS)])
    return hours - np.log(world.popularity)


def test_without_effects_popularity_is_constant(world):
    np.testing.assert_allclose(factors(world), 0.0, atol=1e-12)


def test_launched_queries_appear_rise_and_fade(world):
    log = factors(world, launches=0.3)
    exists = np.isfinite(log)
    appears = ~exists[0] & exists[-1]
    assert 0.2 < appears.mean() < 0.35
    assert (exists[:-1] <= exists[1:]).all(), "what exists does not vanish"
    launch = exists.argmax(0)
    early = np.flatnonzero(appears & (launch < 7 * HOURS))
    after = lambda hours: np.median(log[launch[early] + hours, early])  # noqa: E731
    assert after(0) < after(24) - 0.5
    assert after(24) > after(4 * HOURS) + 0.3 > after(14 * HOURS) + 0.6
    np.testing.assert_allclose(log[:, np.isclose(log, 0).all(0)], 0.0)
    assert np.isclose(log, 0).all(0).mean() > 0.5


def test_bursts_are_short_and_of_single_queries(world):
    log = factors(world, bursts=0.5)
    assert (log >= -1e-9).all() and (log < 0.1).mean() > 0.6
    top = log.max(0)
    assert np.median(top[top > 0.5]) > np.log(5)
    high = log > np.log(3)
    spells = (high[1:] & ~high[:-1]).sum()
    assert 4 < high.sum() / spells < 96, "hours that a burst lasts"
    # A burst does not affect other queries of the shelf.
    shelf = world.shelf == world.shelf[int(top.argmax())]
    assert np.median(log[log.argmax(0)[top.argmax()], shelf]) < 0.1


def test_group_bursts_raise_all_queries_of_a_word_or_a_shelf(world):
    popularity = popularity_with(world, group_bursts=0.5)
    log = np.concatenate([popularity.of_day(day)[0] for day in range(DAYS)])
    log -= np.log(world.popularity)
    bursts, checked = popularity.group_bursts, 0
    for group in np.unique(bursts.target):
        _, queries = world.members(np.array([group]))
        mask = bursts.target == group
        start, height = bursts.start[mask][0], bursts.height[mask][0]
        if len(queries) < 5 or start < 0:
            continue
        assert (log[start, queries] > np.log1p(height) - 1e-6).all()
        checked += 1
    assert checked > 20
    shelf = np.concatenate([popularity.of_day(day)[1] for day in range(DAYS)])
    assert shelf.max() > 1.0, "a burst of a shelf raises the popularity of the shelf"


def test_drift_is_a_slow_walk(world):
    log = factors(world, drift=0.1)[::HOURS]
    for days in (1, 4, 16):
        assert np.std(log[days:] - log[:-days]) == pytest.approx(0.1 * days**0.5, rel=0.15)


def test_hours_repeat_daily_and_belong_to_a_shelf(world):
    log = factors(world, hours=0.6)
    np.testing.assert_allclose(log[:HOURS], log[3 * HOURS : 4 * HOURS])
    assert np.ptp(log, axis=0).min() > 0.5
    for shelf in range(world.shelves):
        np.testing.assert_allclose(np.ptp(log[:, world.shelf == shelf], axis=1), 0, atol=1e-9)
    peaks = {int(log[:HOURS, np.argmax(world.shelf == s)].argmax()) for s in range(world.shelves)}
    assert len(peaks) > 5


def test_weekdays_repeat_weekly_and_belong_to_a_shelf(world):
    log = factors(world, weekdays=0.4)[::HOURS]
    np.testing.assert_allclose(log[:7], log[14:21])
    assert np.std(log[:7], axis=0).mean() == pytest.approx(0.4, rel=0.4)
    for shelf in range(world.shelves):
        np.testing.assert_allclose(np.ptp(log[:, world.shelf == shelf], axis=1), 0, atol=1e-9)


@pytest.mark.parametrize("effects", [{"launches": 0.5}, {"hours": 1.5}])
def test_searches_follow_popularity(world, effects):
    """The searches of people without tastes have the distribution of the hidden popularity."""
    rng = np.random.default_rng(2)
    random = Behaviour(return_share=0, word_share=0, shelf_share=0, refine_share=0, stay_share=0)
    people = make_people(rng, world, 500)
    visits = make_visits(rng, 500, 12_000, DAYS, random)
    popularity = popularity_with(world, **effects)
    searched = make_searches(rng, world, people, visits, popularity, random)
    log = np.concatenate([popularity.of_day(day)[0] for day in range(DAYS)])
    assert np.isfinite(log[visits.hour, searched]).all(), "none before its launch"
    expected = np.zeros(world.shelves)
    lean = world.leaning_pull
    for hour, gender in zip(visits.hour, people.gender[visits.user], strict=True):
        weight = np.exp(log[hour]) * lean[gender]
        expected += np.bincount(world.shelf, weight / weight.sum(), minlength=world.shelves)
    found = np.bincount(world.shelf[searched], minlength=world.shelves)
    assert (np.abs(found - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("effect, value", [("launches", 1.1), ("drift", -0.1)])
def test_impossible_strengths_are_refused(effect, value):
    with pytest.raises(UserError, match=f"{effect}.*found {value}"):
        Timeline(**{effect: value})
