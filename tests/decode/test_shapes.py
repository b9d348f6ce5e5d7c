"""Batches are filled, and neither too large nor mostly filling."""

import pytest

from onesug_jax.decode.shapes import Shapes

SHAPES = Shapes.of((1, 8, 32), 144)


def test_inputs_are_rounded_up():
    assert SHAPES.lengths == (32, 64, 96, 128, 144)


@pytest.mark.parametrize(
    "waiting, batches",
    [(1, [1]), (3, [3]), (8, [8]), (9, [8, 1]), (15, [8, 7]), (20, [20]), (70, [32, 32, 6])],
)
def test_small_batches_are_filled_up_and_large_ones_are_not(waiting, batches):
    found = []
    while waiting:
        found.append(SHAPES.next_batch(waiting))
        waiting -= found[-1]
    assert found == batches
