"""The largest in stages are the largest."""

import jax
import numpy as np
import pytest

from onesug_jax.decode.top import largest


@pytest.mark.parametrize("count, k", [(7, 7), (100, 64), (5000, 3), (9001, 16), (300_000, 64)])
def test_equals_sorting_everything(count, k):
    """Values and places of two rows, few and many numbers, also where groups do not divide them."""
    x = np.random.default_rng(count).normal(size=(2, count)).astype(np.float32)
    values, places = jax.jit(largest, static_argnums=1)(x, k)
    order = np.argsort(-x, axis=1)[:, :k]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=1))


def test_equal_numbers_are_each_taken_once():
    """Places differ, whatever is equal."""
    x = np.zeros((1, 4096), np.float32)
    _, places = largest(x, 64)
    assert len(set(np.asarray(places[0]).tolist())) == 64
