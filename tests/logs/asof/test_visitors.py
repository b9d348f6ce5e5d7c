"""Whose searches count: the nameless, repeats of one visitor, and histories of users."""

import numpy as np
import pytest

from onesug_jax.logs.asof.config import DAY_MS, AsOfConfig
from onesug_jax.logs.asof.histories import Histories
from onesug_jax.logs.asof.repeats import Repeats
from onesug_jax.logs.asof.snapshot import load, save
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.schema import Level
from tests.logs.asof.searches import START


def test_nameless_searches_of_a_day_are_one_visitor():
    state = AsOf(["lamp"], AsOfConfig(freshness_ms=0, min_users=2))
    state.observe(START, "u", "la", "lamp")
    for number in range(50):
        state.observe(START + number, "", "la", "lava")
    state.settle()
    assert state.number("lava") < 0
    state.observe(START + DAY_MS, "", "la", "lava")
    state.settle()
    number = state.number("lava")
    assert state.exists(number), "two visitors, as there are two days"
    assert state.counts(np.array([number]))[0, 0] == 2


def test_every_search_counts_if_nobody_has_a_name(tmp_path):
    config = AsOfConfig(freshness_ms=0)
    state = AsOf(["lamp"], config)
    for number in range(5):
        state.observe(START + number, "", "la", "lamp")
    state.settle()
    assert state.counts(np.array([0]))[0, 0] == 5
    save(state, str(tmp_path))
    state = load(str(tmp_path), config)
    state.observe(START + DAY_MS, "u", "la", "lava")
    for number in range(5):
        state.observe(START + DAY_MS + 1 + number, "", "la", "lamp")
    state.settle()
    assert state.counts(np.array([0]))[0, 0] == 6, "somebody has a name now"


@pytest.mark.parametrize("most", [1, 2])
def test_a_visitors_repeats_on_one_day_count_max_repeats_times(most):
    config = AsOfConfig(freshness_ms=0, conversion_delay_ms=0, max_repeats=most)
    state = AsOf(["lamp"], config)
    for number in range(9):
        state.observe(START + number, "u", "la"[: number % 3], "lamp", Level.ORDER)
    state.settle()
    at = {name: place for place, name in enumerate(config.columns)}
    items = state.request("", "", START + 3_600_000)
    counts = np.exp(items.candidate_counts[0])
    for name in ("searches_all", "orders", "item_clicks"):
        assert counts[at[name]] == pytest.approx(most), name
    state.observe(START + 9, "v", "", "lamp")
    state.observe(START + DAY_MS, "u", "", "lamp")
    state.settle()
    assert state.counts(np.array([0]))[0, 0] == most + 2, "another visitor, and another day"


def test_repeats_use_bounded_memory():
    repeats = Repeats(1, room=2)
    assert [repeats.counts(START, "u", query) for query in "aabcc"] == [1, 0, 1, 1, 0]
    assert repeats.counts(START, "u", "a"), "the oldest was removed"
    assert len(repeats.to_json()[1]) == 2


def test_histories_are_the_latest_queries_of_the_users_seen_last():
    rng = np.random.default_rng(0)
    histories, expected = Histories(3, users=4), {}
    for time in range(500):
        user, query = f"u{rng.integers(7)}", str(rng.integers(500, 505))
        histories.add(user, query, time)
        past = expected.pop(user, [])
        expected[user] = [(query, time), *(one for one in past if one[0] != query)][:3]
        expected = dict([*expected.items()][-4:])
        for user in (f"u{n}" for n in range(7)):
            assert [*zip(*histories.of(user), strict=True)] == expected.get(user, [])
