"""The losses against independent float64 references, and their gradients by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.align import losses
from onesug_jax.model.scores import Scores

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 7)) * 3
TARGETS = RNG.integers(1, 7, (3, 4))
WEIGHTS = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)


def sft(logits, targets=TARGETS, weights=WEIGHTS):
    scores = Scores(jnp.asarray(logits, jnp.float32))
    return losses.sft(scores.log_probabilities(jnp.asarray(targets)), weights)


def slow_sft(logits):
    """The nats of the weighted targets, one at a time in float64."""
    total = 0.0
    for b in range(3):
        for t in range(4):
            if WEIGHTS[b, t]:
                exponentials = [np.exp(np.float64(x)) for x in logits[b, t]]
                total -= np.log(exponentials[TARGETS[b, t]] / sum(exponentials))
    return total


def test_sft_is_the_sum_of_negative_log_probabilities():
    total, weight = sft(LOGITS)
    np.testing.assert_allclose(total, slow_sft(LOGITS), rtol=1e-5)
    assert weight == WEIGHTS.sum()


@pytest.mark.long
def test_sft_gradient_by_finite_differences():
    gradient = jax.grad(lambda x: sft(x)[0])(jnp.asarray(LOGITS, jnp.float32))
    for at in [(0, 0, 3), (1, 0, TARGETS[1, 0]), (2, 3, 6), (0, 3, 1)]:
        step = np.zeros_like(LOGITS)
        step[at] = 1e-4
        slope = (slow_sft(LOGITS + step) - slow_sft(LOGITS - step)) / 2e-4
        np.testing.assert_allclose(gradient[at], slope, atol=1e-4)


def test_sft_does_not_overflow():
    logits = jnp.array([[[1000.0, -1000.0]]])
    total, _ = sft(logits, [[1]], jnp.ones((1, 1)))
    assert total == 2000.0
