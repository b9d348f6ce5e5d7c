"""Residual k-means: codebooks of the embeddings themselves, and the initial codebooks of RQ-VAEs.

Each level is a k-means over the residuals of the levels before. It needs no network and no learning
rate, so it is the simple alternative to `rqvae` (PAPER.md section 2.4), and gives a `Quantiser`
too. It works on a sample that fits in memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.semantic_ids.quantiser import Quantiser

_BLOCK = 4096  # points whose distances to all centres are in memory at one time


def train_rq_kmeans(
    sample: np.ndarray,
    *,
    levels: int = 4,
    codes: int = 512,
    iterations: int = 20,
    seed: int,
    encoder: str = "",
) -> Quantiser:
    """A quantiser without a network: codebooks by residual k-means on a sample [M, D]."""
    codebooks, _ = residual_kmeans(sample, levels, codes, iterations=iterations, seed=seed)
    return Quantiser(codebooks, encoder=encoder)


def take_sample(embeddings: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` distinct rows of [N, D], in their order, in memory."""
    if len(embeddings) <= most:
        return np.asarray(embeddings, np.float32)
    rows = np.random.default_rng((seed, len(embeddings))).choice(
        len(embeddings), most, replace=False, shuffle=False
    )
    return np.asarray(embeddings[np.sort(rows)], np.float32)


def residual_kmeans(
    points: np.ndarray, levels: int, codes: int, *, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codebooks [levels, codes, d] and the share of points on each code [levels, codes].

    With fewer distinct points than codes some codes coincide; the first of them gets all points.
    """
    codebooks, shares = [], []
    residuals = jnp.asarray(points, jnp.float32)
    for level in range(levels):
        key = jax.random.fold_in(jax.random.key(seed), level)
        centres = kmeans(residuals, codes, iterations=iterations, key=key)
        nearest, _ = assign(residuals, centres)
        residuals = residuals - centres[nearest]
        codebooks.append(np.asarray(centres))
        shares.append(np.bincount(np.asarray(nearest), minlength=codes) / len(points))
    return np.stack(codebooks), np.stack(shares).astype(np.float32)


def kmeans(points: jax.Array, k: int, *, iterations: int, key: jax.Array) -> jax.Array:
    """Centres [k, d] of points [M, d]: random distinct rows, then rounds of Lloyd's algorithm.

    Residuals in many dimensions are nearly orthogonal, and nearer to 0 than to any other point. If
    the centres started as points, a centre near 0 would get all other points. So they start with
    the directions of points, and the same small length.
    """
    choose, rounds = jax.random.split(key)
    rows = jax.random.permutation(choose, len(points))[jnp.arange(k) % len(points)]
    centres = at_length(points[rows], 1e-3)
    for number in range(max(iterations, 1)):
        centres = _lloyd(points, centres, jax.random.fold_in(rounds, number))
    return centres


@jax.jit
def assign(points: jax.Array, centres: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nearest centre [M] of each point and the squared distance to it [M]."""

    def nearest(block):
        scores = squared_distances(block, centres)
        best = jnp.argmin(scores, axis=1)
        least = jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        return best, jnp.maximum(least + jnp.sum(block**2, axis=1), 0)

    count = len(points)
    size = min(_BLOCK, count)
    padded = jnp.pad(points, ((0, -count % size), (0, 0))).reshape(-1, size, points.shape[1])
    best, distance = jax.lax.map(nearest, padded)
    return best.reshape(-1)[:count], distance.reshape(-1)[:count]


def squared_distances(points: jax.Array, centres: jax.Array) -> jax.Array:
    """|p - c|^2 - |p|^2 for points [B, d] and centres [K, d]: [B, K], in full float32."""
    products = jnp.matmul(points, centres.T, precision="highest")
    return jnp.sum(centres**2, axis=1) - 2 * products


def at_length(vectors: jax.Array, length: jax.Array | float) -> jax.Array:
    """Vectors [..., d] scaled to a length; a zero vector stays zero."""
    return vectors * (length / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


@jax.jit
def _lloyd(points: jax.Array, centres: jax.Array, key: jax.Array) -> jax.Array:
    """One round: a centre moves to the mean of its points; one without points is drawn again."""
    k = len(centres)
    nearest, distance = assign(points, centres)
    sums = jax.ops.segment_sum(points, nearest, k)
    counts = jax.ops.segment_sum(jnp.ones(len(points)), nearest, k)[:, None]
    means = sums / jnp.maximum(counts, 1)
    # The top k of log(weight) + Gumbel noise are a weighted draw without replacement.
    noise = jax.random.gumbel(key, distance.shape)
    draws = min(k, len(points))
    _, drawn = jax.lax.top_k(jnp.log(distance) + noise, draws)
    empty = counts[:, 0] == 0
    draw = jnp.cumsum(empty) - 1
    restart = (empty & (draw < draws))[:, None]
    rms_length = jnp.sqrt(jnp.sum(means**2) / jnp.maximum(jnp.sum(~empty), 1))
    fresh = at_length(points[drawn[jnp.clip(draw, 0, draws - 1)]], rms_length)
    return jnp.where(restart, fresh, means)
