"""A small residual k-means and clustered vectors, for the tests of the index."""

import numpy as np

from onesug_jax.semantic_ids.quantiser import Quantiser


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(n: int, dimension: int, seed: int, *, centres: int = 12) -> np.ndarray:
    """[n, dimension] unit vectors around a few centres."""
    rng = np.random.default_rng(seed)
    middle = np.random.default_rng(99).normal(size=(centres, dimension))
    return unit(middle[rng.integers(0, centres, n)] + 0.7 * rng.normal(size=(n, dimension)))


def residual_kmeans(
    vectors: np.ndarray, levels: int, codes: int, seed: int = 0, layers=()
) -> tuple[Quantiser, np.ndarray]:
    """A quantiser and the ids [N, levels] of the vectors; some moved at the last level."""
    rng = np.random.default_rng(seed)
    left = Quantiser(np.zeros((1, 1, vectors.shape[1]), np.float32), layers).latents(vectors)
    left, books = left.astype(np.float64), []
    for _ in range(levels):
        centres = left[rng.choice(len(left), codes, replace=len(left) < codes)]
        for _ in range(4):
            own = np.argmin(((left[:, None] - centres) ** 2).sum(-1), axis=1)
            for code in np.unique(own):
                centres[code] = left[own == code].mean(0)
        own = np.argmin(((left[:, None] - centres) ** 2).sum(-1), axis=1)
        left = left - centres[own]
        books.append(centres)
    quantiser = Quantiser(np.array(books, np.float32), layers)
    ids = quantiser.codes(vectors)
    moved = rng.random(len(ids)) < 0.1
    ids[moved, -1] = rng.integers(0, codes, moved.sum())
    return quantiser, ids
