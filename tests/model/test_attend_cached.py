"""Attention of a beam step: the way a GPU takes gives what the plain one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.arrays import NEG_INF
from onesug_jax.model.layers import mixed_on_gpu, mixed_values


@pytest.mark.long
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_both_ways_mix_alike(scale):
    """Beside float64, few of many keys seen, large scores, two biases."""
    rng = np.random.default_rng(0)
    queries, keys, values = (
        rng.normal(size=(2, 3, count, 8)).astype(np.float32) for count in (4, 24, 24)
    )
    queries *= scale
    seen = rng.random((2, 1, 4, 24)) < 0.2
    seen[..., 0] = True
    bias = np.where(seen, 0.0, NEG_INF).astype(np.float32)
    distance = rng.normal(size=(1, 3, 1, 24)).astype(np.float32)
    scores = np.einsum("bhqk,bhsk->bhqs", queries, keys, dtype=np.float64) + distance
    weights = np.where(
        seen, np.exp(scores - np.where(seen, scores, -np.inf).max(-1, keepdims=True)), 0
    )
    expected = np.einsum("bhqs,bhsk->bhqk", weights / weights.sum(-1, keepdims=True), values)
    for way in (mixed_values, mixed_on_gpu):
        found = jax.jit(way)(queries, keys, values, bias, distance)
        np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
        half = [jnp.asarray(x, jnp.bfloat16) for x in (queries, keys, values)]
        assert way(*half, bias, distance).dtype == jnp.bfloat16
