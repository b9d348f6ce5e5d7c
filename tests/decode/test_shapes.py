"""Batches are filled, and neither too large nor mostly filling."""

import pytest

from onesug_jax.decode.shapes import Shapes, batches_of

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
    found = batches_of(needed, (1, 8, 32))
    assert [[needed[place] for place in batch] for batch in found] == batches
    assert sorted(place for batch in found for place in batch) == [*range(len(needed))]


def test_where_one_batch_size_is_compiled_it_takes_all():
    assert [len(batch) for batch in batches_of([8] * 9, (8,))] == [1, 8]
