"""Rewards: the formula, its bounds, and refused settings."""

import math

import numpy as np
import pytest

from onesug_jax.align.rewards import NEGATIVE, POSITIVE, RewardConfig, reward_table
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import Level


def counts_of(level, counts):
    table = np.zeros((6, len(counts)), np.int64)
    table[level] = counts
    return table


def test_reward_is_lambda_times_e_to_the_centred_log_frequency():
    counts = [1, 2, 3, 0]
    config = RewardConfig(clip=0.2)
    table = reward_table(counts_of(Level.ORDER, counts), config)[Level.ORDER]
    logs = [math.log(c + 1) for c in counts]
    centre = sum(logs[:3]) / 3  # over the queries with an order
    for value, log in zip(table, logs, strict=True):
        assert value == pytest.approx(2.0 * math.exp(max(-0.2, min(0.2, log - centre))))


def test_rewards_straddle_lambda_within_the_clip():
    counts = np.random.default_rng(0).zipf(1.5, (6, 500))
    table = reward_table(counts, RewardConfig())
    base = RewardConfig().base
    for level in Level:
        assert table[level].min() >= base[level] * math.exp(-0.2) * (1 - 1e-6)
        assert table[level].max() <= base[level] * math.exp(0.2) * (1 + 1e-6)
    assert (table[Level.ORDER] > 2.0).any() and (table[Level.ORDER] < 2.0).any()
    positive = min(table[level].min() for level in POSITIVE)
    assert positive > max(table[level].max() for level in NEGATIVE)


def test_a_level_without_counts_has_finite_rewards():
    table = reward_table(np.zeros((6, 3), np.int64), RewardConfig())
    assert np.isfinite(table).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"show": 1.2}, "differ more"),
        ({"clip": 0.5}, "Lower clip"),
        ({"clip": -1.0}, "clip"),
        ({"smoothing": 0.0}, "smoothing"),
        ({"rand": -0.1}, "negative"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        RewardConfig(**wrong)
