"""Attention of a beam step: the implementation for GPUs equals the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.arrays import NEG_INF
from onesug_jax.model.layers import mixed_on_gpu, mixed_values


@pytest.mark.long
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_both_implementations_equal_float64(scale):
    """With few visible keys, large scores and two biases."""
    rng = np.random.default_rng(0)
    queries, keys, values = (
        rng.normal(size=(2, 3, count, 8)).astype(np.float32) for count in (4, 24, 24)
    )
    queries *= scale
    mask = rng.random((2, 1, 4, 24)) < 0.2
    mask[..., 0] = True
    bias = np.where(mask, 0.0, NEG_INF).astype(np.float32)
    distance = rng.normal(size=(1, 3, 1, 24)).astype(np.float32)
    scores = np.einsum("bhqk,bhsk->bhqs", queries, keys, dtype=np.float64) + distance
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqs,bhsk->bhqk", weights / weights.sum(-1, keepdims=True), values)
    for mixed in (mixed_values, mixed_on_gpu):
        result = jax.jit(mixed)(queries, keys, values, bias, distance)
        np.testing.assert_allclose(result, expected, atol=2e-5 * scale)
        half = [jnp.asarray(x, jnp.bfloat16) for x in (queries, keys, values)]
        assert mixed(*half, bias, distance).dtype == jnp.bfloat16
