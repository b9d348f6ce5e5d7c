"""Batch shapes: few sizes, and never mostly padding."""

import pytest

from onesug_jax.decode.shapes import Shapes, batches_of

SHAPES = Shapes.of((1, 8, 32), 144)


def test_inputs_are_rounded_up():
    assert SHAPES.lengths == (32, 64, 96, 128, 144)


@pytest.mark.parametrize(
    "waiting, batches",
    [(1, [1]), (3, [3]), (8, [8]), (9, [8, 1]), (15, [8, 7]), (20, [20]), (70, [32, 32, 6])],
)
def test_small_batches_are_padded_and_large_ones_split(waiting, batches):
    sizes = []
    while waiting:
        sizes.append(SHAPES.next_batch(waiting))
        waiting -= sizes[-1]
    assert sizes == batches


@pytest.mark.parametrize(
    "needed, batches",
    [
        ([8], [[8]]),
        ([64, 8, 64, 8], [[8], [8], [64], [64]]),
        ([64] * 4 + [8] * 3, [[64] * 4 + [8] * 3]),
        ([64] * 4 + [8] * 9, [[8] * 5, [64] * 4 + [8] * 4]),
        ([8] * 15, [[8] * 7, [8] * 8]),
        ([64] * 20 + [8] * 20, [[8] * 8, [64] * 20 + [8] * 12]),
    ],
)
def test_requests_share_a_batch_where_that_costs_little(needed, batches):
    groups = batches_of(needed, (1, 8, 32))
    assert [[needed[index] for index in group] for group in groups] == batches
    assert sorted(index for group in groups for index in group) == [*range(len(needed))]


def test_a_single_batch_size_takes_all_requests():
    assert [len(batch) for batch in batches_of([8] * 9, (8,))] == [1, 8]
