"""The preference losses against float64 references, and their properties."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.align import losses

SAMPLE = pathlib.Path(__file__).parents[3] / "shared/data/onesug_official_sample/data.txt"
DELTA = 0.5
PREFERENCES = [name for name in losses.LOSSES if name != "sft"]
PRINTED = ("rwr_printed_pair", "rwr_printed_list")

RNG = np.random.default_rng(3)
IMPLICIT = RNG.normal(size=(6, 5))
REWARDS = np.concatenate([RNG.uniform(0.9, 2.4, (6, 1)), RNG.uniform(0, 0.6, (6, 4))], axis=1)
MASK = np.ones((6, 5), bool)
MASK[1, 3:] = False
MASK[2, 1:] = False  # a positive without any negative
MASK[3, 0] = False  # a row of padding


def slow(name, implicit, rewards, mask, delta=DELTA):
    """The losses as PAPER.md section 4 writes them: one list, one pair, one exponential at a
    time.
    """
    out = []
    for r, reward, real in zip(implicit, rewards, mask, strict=True):
        negatives = [i for i in range(1, len(r)) if real[i] and real[0]]
        if not negatives:
            out.append(0.0)
            continue
        exponents = []
        for i in negatives:
            behind = float(r[i] - r[0])
            weight = 1 / (reward[0] - reward[i])
            if "release" in name:
                weight = (max(reward[0], 1.0) - reward[i]) ** -1.5 + 1
            exponents.append(
                {
                    "dpo": behind,
                    "softmax_dpo": behind,
                    "rwr_printed_pair": -weight * max(0.0, -behind - delta),
                    "rwr_printed_list": weight * max(0.0, behind - delta),
                    "rwr_hinge_pair": weight * max(0.0, delta + behind),
                    "rwr_hinge": weight * max(0.0, delta + behind),
                    "rwr_release_pair": weight * behind,
                    "rwr_release": weight * behind,
                }[name]
            )
        if name == "dpo" or name.endswith("_pair"):
            out.append(sum(-math.log(1 / (1 + math.exp(x))) for x in exponents) / len(exponents))
        else:
            total = sum(math.exp(x) for x in exponents)
            out.append(-math.log(1 / (1 + math.exp(math.log(total)))))
    return np.array(out)


def loss(name, implicit=IMPLICIT, rewards=REWARDS, mask=MASK):
    return losses.LOSSES[name](
        jnp.asarray(implicit, jnp.float32), jnp.asarray(rewards), mask, DELTA
    )


@pytest.mark.parametrize("name", PREFERENCES)
def test_equals_the_float64_reference(name):
    np.testing.assert_allclose(
        loss(name), slow(name, IMPLICIT, REWARDS, MASK), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", PREFERENCES)
def test_gradient_by_finite_differences(name):
    gradient = jax.grad(lambda x: loss(name, x).sum())(jnp.asarray(IMPLICIT, jnp.float32))
    for at in np.ndindex(IMPLICIT.shape):
        step = np.zeros_like(IMPLICIT)
        step[at] = 1e-5
        slope = (
            slow(name, IMPLICIT + step, REWARDS, MASK).sum()
            - slow(name, IMPLICIT - step, REWARDS, MASK).sum()
        ) / 2e-5
        np.testing.assert_allclose(gradient[at], slope, atol=2e-4)


@pytest.mark.parametrize("name", PREFERENCES)
def test_gradient_where_policy_and_reference_agree(name):
    gradient = jax.grad(lambda x: loss(name, x).sum())(jnp.zeros((6, 5), jnp.float32))
    lists = np.array([0, 1, 4, 5])  # those with a positive and a negative
    if name in PRINTED:
        assert not gradient.any()
    else:
        assert (gradient[lists, 0] < 0).all()  # a descent step raises the positive
        assert (gradient[lists, 1] > 0).all()


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_order_of_negatives_does_not_matter(name):
    order = [0, 3, 1, 4, 2]
    shuffled = loss(name, IMPLICIT[:, order], REWARDS[:, order], MASK[:, order])
    np.testing.assert_allclose(shuffled, loss(name), rtol=1e-6)


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_finite_at_log_ratios_of_a_thousand(name, sign):
    far = jnp.full((6, 5), -1000.0 * sign).at[:, 0].set(1000.0 * sign)
    value, gradient = jax.value_and_grad(lambda x: loss(name, x).sum())(far)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", PREFERENCES)
def test_empty_positions_have_neither_loss_nor_gradient(name):
    changed = np.where(MASK, IMPLICIT, 77.0)
    np.testing.assert_array_equal(loss(name, changed), loss(name))
    gradient = jax.grad(lambda x: loss(name, x).sum())(jnp.asarray(changed, jnp.float32))
    assert not gradient[~MASK].any()
    assert not gradient[2:4].any()


def test_closer_rewards_have_larger_weights():
    rewards = np.array([[1.0, 0.5, 0.2, 0.0], [2.0, 0.5, 0.2, 0.0]])
    for weights in (losses.gap_weights(rewards), losses.release_weights(rewards)):
        assert (np.diff(weights, axis=1) < 0).all()  # SHOW, NOT_SHOW, RAND
        assert (weights[0] > weights[1]).all()  # a click, an order


def test_the_hinge_has_no_gradient_beyond_the_margin():
    reached = np.array([[DELTA + 0.01, 0, 0]])
    rewards, mask = np.array([[2.0, 0.5, 0.2]]), np.ones((1, 3), bool)
    for name in ("rwr_hinge", "rwr_hinge_pair"):
        gradient = jax.grad(lambda x, name=name: loss(name, x, rewards, mask).sum())(
            jnp.asarray(reached)
        )
        assert not gradient.any()


@pytest.mark.skipif(not SAMPLE.exists(), reason="the authors' ten rows are not here")
@pytest.mark.parametrize("name", PREFERENCES)
def test_the_authors_rows_give_the_losses_of_the_reference(name):
    with open(SAMPLE, encoding="utf-8", newline="") as file:
        records = [line.rstrip("\r\n").split("\t") for line in file]
    lists = [[chosen, *rejected.split(",")] for *_, chosen, rejected, _, _ in records]
    assert len(lists) == 10
    widest = max(map(len, lists))
    rewards, mask = np.zeros((10, widest)), np.zeros((10, widest), bool)
    implicit = np.zeros((10, widest))
    for row, (texts, record) in enumerate(zip(lists, records, strict=True)):
        mask[row, : len(texts)] = True
        rewards[row, : len(texts)] = float(record[-1])
        rewards[row, 0] = float(record[-2])
        # A stand-in for a policy: any fixed function of the texts.
        implicit[row, : len(texts)] = [math.sin(len(text) + row) for text in texts]
    assert (rewards[:, 0] > rewards[:, 1]).all()
    np.testing.assert_allclose(
        loss(name, implicit, rewards, mask), slow(name, implicit, rewards, mask), rtol=2e-5
    )
