"""`largest` against a full sort; both reductions of `group_max_and_logsumexp`."""

import jax
import numpy as np
import pytest

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.top import in_one_pass, in_turn, largest


@pytest.mark.parametrize("count, k", [(7, 7), (100, 64), (5000, 3), (9001, 16), (300_000, 64)])
def test_equals_sorting_everything(count, k):
    """Values and indices of two rows, with few and many numbers, also with an incomplete group."""
    x = np.random.default_rng(count).normal(size=(2, count)).astype(np.float32)
    values, places = jax.jit(largest, static_argnums=1)(x, k)
    order = np.argsort(-x, axis=1)[:, :k]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=1))


def test_equal_numbers_have_distinct_indices():
    x = np.zeros((1, 4096), np.float32)
    _, places = largest(x, 64)
    assert len(set(np.asarray(places[0]).tolist())) == 64


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("reduce", [in_turn, in_one_pass])
def test_one_reading_finds_group_maxima_and_the_logsumexp(reduce, scale):
    """Against float64: large scores, a group with padding, disallowed tokens."""
    rng = np.random.default_rng(0)
    groups = (scale * rng.normal(size=(2, 3, 5, 8))).astype(np.float32)
    groups[:, :, 4, 3:] = NEG_INF
    allowed = rng.random((5, 8)) < 0.8
    allowed[2] = False
    highest, log_partition = jax.jit(reduce)(groups, allowed)
    expected = np.where(allowed, groups, NEG_INF).max(axis=-1)
    np.testing.assert_array_equal(highest, expected)
    wide = groups.astype(np.float64)
    top = wide.max(axis=(-2, -1), keepdims=True)
    sums = np.log(np.exp(wide - top).sum(axis=(-2, -1))) + top[..., 0, 0]
    np.testing.assert_allclose(log_partition, sums, rtol=1e-6)
