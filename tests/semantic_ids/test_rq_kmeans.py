"""Residual k-means: clusters, even use of codes, and fewer points than codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.semantic_ids import rq_kmeans
from onesug_jax.semantic_ids.ids import level_usage


def test_the_centres_of_separate_clusters_are_their_means():
    rng = np.random.default_rng(0)
    truth = np.eye(6, dtype=np.float32)
    points = np.repeat(truth, 50, axis=0) + 0.01 * rng.standard_normal((300, 6)).astype(np.float32)
    centres = rq_kmeans.kmeans(jnp.asarray(points), 6, iterations=30, key=jax.random.key(3))
    means = points.reshape(6, 50, 6).mean(1)
    order = np.asarray(centres).argmax(1).argsort()
    np.testing.assert_allclose(np.asarray(centres)[order], means, atol=1e-5)


def test_assign_gives_the_nearest_centre_in_every_block():
    rng = np.random.default_rng(1)
    points = rng.standard_normal((4500, 5)).astype(np.float32)
    centres = rng.standard_normal((9, 5)).astype(np.float32)
    nearest, distance = rq_kmeans.assign(jnp.asarray(points), jnp.asarray(centres))
    squared = ((points[:, None].astype(np.float64) - centres[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest, squared.argmin(1))
    np.testing.assert_allclose(distance, squared.min(1), atol=1e-5)


@pytest.mark.long
def test_noise_in_many_dimensions_uses_the_codes_evenly():
    """If centres started on points, one centre would get all other points (perplexity 3)."""
    points = np.random.default_rng(2).standard_normal((1000, 128)).astype(np.float32)
    quantiser = rq_kmeans.train_rq_kmeans(points, levels=2, codes=64, iterations=10, seed=0)
    usage = level_usage(quantiser.codes(points), 64)
    assert [row["used"] for row in usage] == [64, 64]
    assert min(row["perplexity"] for row in usage) > 45


def test_every_level_reduces_the_error():
    points = np.random.default_rng(3).standard_normal((400, 8)).astype(np.float32)
    quantiser = rq_kmeans.train_rq_kmeans(points, levels=4, codes=16, seed=0, encoder="abc")
    ids = quantiser.codes(points)
    errors = [((points - quantiser.reconstruct(ids[:, :n])) ** 2).sum() for n in range(5)]
    assert all(later < 0.9 * sooner for sooner, later in zip(errors, errors[1:], strict=False))
    assert quantiser.encoder == "abc"
    np.testing.assert_array_equal(quantiser.latents(points), points)


@pytest.mark.long
def test_shares_are_the_shares_of_the_sample():
    points = np.random.default_rng(4).standard_normal((200, 4)).astype(np.float32)
    codebooks, shares = rq_kmeans.residual_kmeans(points, 2, 8, iterations=5, seed=1)
    ids = rq_kmeans.Quantiser(codebooks).codes(points)
    for level in range(2):
        counts = np.bincount(ids[:, level], minlength=8)
        np.testing.assert_allclose(shares[level], counts / 200, atol=1e-6)


def test_the_seed_decides_the_codebooks():
    points = np.random.default_rng(5).standard_normal((100, 4)).astype(np.float32)
    one, same, other = (
        rq_kmeans.residual_kmeans(points, 2, 8, iterations=3, seed=seed)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_points_than_codes_are_reconstructed_exactly(count):
    points = np.random.default_rng(6).standard_normal((count, 4)).astype(np.float32)
    quantiser = rq_kmeans.train_rq_kmeans(points, levels=2, codes=8, seed=0)
    ids = quantiser.codes(points)
    np.testing.assert_allclose(quantiser.reconstruct(ids), points, atol=1e-5)
    assert len(np.unique(ids, axis=0)) == count


def test_a_sample_is_of_distinct_rows_in_order():
    rows = np.arange(50, dtype=np.float32)[:, None]
    sample = rq_kmeans.take_sample(rows, 20, seed=1)
    assert len(sample) == 20
    assert (np.diff(sample[:, 0]) > 0).all()
    np.testing.assert_array_equal(sample, rq_kmeans.take_sample(rows, 20, seed=1))
    np.testing.assert_array_equal(rq_kmeans.take_sample(rows, 60, seed=1), rows)
