"""Enhanced prefixes against the formula, computed prefix by prefix."""

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.retrieval.enhance import EnhanceConfig, enhance
from tests.retrieval.index_toy import unit


@pytest.fixture(scope="module")
def log():
    """Vectors of 50 prefixes, offsets of their pairs, the pairs, 40 query vectors."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(0, 9, 50)
    sizes[[0, 7, 49]] = 0, 0, 0
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    numbers = rng.integers(0, 40, offsets[-1]).astype(np.int32)
    return unit(rng.normal(size=(50, 6))), offsets, numbers, unit(rng.normal(size=(40, 6)))


def by_hand(own, offsets, numbers, vectors, weight, k):
    rows = []
    for i, e_p in enumerate(own.astype(np.float64)):
        best = numbers[offsets[i] : offsets[i + 1]][:k]
        if len(best):
            e_p = (1 - weight) * e_p + weight * sum(vectors[q] for q in best) / len(best)
        rows.append(e_p / np.linalg.norm(e_p))
    return np.array(rows)


@pytest.mark.parametrize("weight, k", [(0.5, 10), (0.5, 1), (0.2, 3), (0.0, 5), (1.0, 5)])
@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_every_prefix_is_the_formula(log, weight, k, block):
    own, offsets, numbers, vectors = log
    config = EnhanceConfig(weight=weight, k=k)
    found = enhance(own, offsets, numbers, vectors.__getitem__, config, block=block)
    np.testing.assert_allclose(found, by_hand(own, offsets, numbers, vectors, weight, k), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_writes_to_a_given_array_of_another_type(log):
    own, offsets, numbers, vectors = log
    out = np.zeros(own.shape, np.float16)
    assert enhance(own, offsets, numbers, vectors.__getitem__, out=out) is out
    expected = by_hand(own, offsets, numbers, vectors, 0.5, 10)
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=1e-3)


def test_only_a_block_of_vectors_is_read_at_a_time(log):
    own, offsets, numbers, vectors = log
    reads = []

    def vectors_of(rows):
        reads.append(len(rows))
        return vectors[rows]

    enhance(own, offsets, numbers, vectors_of, EnhanceConfig(k=2), block=4)
    assert max(reads) <= 8
    assert sum(reads) == np.minimum(np.diff(offsets), 2).sum()


def test_no_prefixes_and_vectors_of_zeros(log):
    _, _, _, vectors = log
    empty = enhance(np.zeros((0, 6)), np.zeros(1, int), np.zeros(0, int), vectors.__getitem__)
    assert empty.shape == (0, 6)
    zeros = enhance(np.zeros((1, 6)), np.zeros(2, int), np.zeros(0, int), vectors.__getitem__)
    assert zeros.tolist() == [[0.0] * 6]


@pytest.mark.parametrize("bad", [{"weight": -0.1}, {"weight": 1.1}, {"k": 0}])
def test_bad_settings_are_named(bad):
    with pytest.raises(UserError, match=f"EnhanceConfig.{next(iter(bad))}"):
        EnhanceConfig(**bad)
