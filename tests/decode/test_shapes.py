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
        found.append(SHAPES.together(64, waiting))
        waiting -= found[-1]
    assert found == batches


def test_large_trees_are_scored_few_at_a_time():
    assert SHAPES.together(1024, 32) == 8
    assert SHAPES.together(4096, 32) == 1
    assert SHAPES.together(1 << 20, 32) == 1


def test_trees_are_filled_up_to_few_sizes():
    assert [SHAPES.room(nodes) for nodes in (1, 64, 65, 300)] == [64, 64, 128, 512]
    assert [Shapes((1,), (8,), (96, 128)).room(nodes) for nodes in (1, 96, 97)] == [96, 96, 128]
