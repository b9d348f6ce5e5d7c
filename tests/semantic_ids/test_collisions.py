"""Separated ids against a slow reference."""

import numpy as np
import pytest

from onesug_jax.semantic_ids import collisions
from onesug_jax.semantic_ids.collisions import resolve_collisions
from onesug_jax.semantic_ids.ids import SemanticIds
from onesug_jax.semantic_ids.quantiser import Quantiser


def slow_resolve(ids, counts, latents, codebooks):
    """The rule of `resolve_collisions`, one query after another."""
    new = [tuple(row) for row in ids.tolist()]
    taken = set(new)
    best = {}
    for i in sorted(range(len(ids)), key=lambda i: (-counts[i], i)):
        best.setdefault(new[i], i)
    movers = [i for i in range(len(ids)) if best[new[i]] != i]
    for i in sorted(movers, key=lambda i: (-counts[i], i)):
        parent = new[i][:-1]
        residual = latents[i] - sum(codebooks[level][code] for level, code in enumerate(parent))
        order = np.argsort(((residual - codebooks[-1]) ** 2).sum(1), kind="stable")
        free = [int(code) for code in order if (*parent, int(code)) not in taken]
        if free:
            new[i] = (*parent, free[0])
            taken.add(new[i])
    return np.array(new)


@pytest.mark.parametrize("block", [8192, 7])
def test_moving_follows_the_rule(monkeypatch, block):
    monkeypatch.setattr(collisions, "_MOVERS", block)
    rng = np.random.default_rng(5)
    # 160 queries under 12 parents of 12 codes: some parents become full, others do not.
    codebooks = rng.standard_normal((2, 12, 4)).astype(np.float32)
    embeddings = rng.standard_normal((160, 4)).astype(np.float32)
    counts = rng.integers(1, 5, size=160)
    quantiser = Quantiser(codebooks)
    ids = quantiser.codes(embeddings)
    new = resolve_collisions(ids, counts, embeddings, quantiser)
    expected = slow_resolve(ids, counts, embeddings.astype(np.float64), codebooks)
    np.testing.assert_array_equal(new, expected)
    before, after = (SemanticIds.build(x, counts, 12).collisions() for x in (ids, new))
    assert 0 < after < before
    np.testing.assert_array_equal(new[:, :-1], ids[:, :-1])


def test_equal_queries_get_distinct_ids_until_no_code_is_free():
    quantiser = Quantiser(np.arange(4, dtype=np.float32).reshape(1, 4, 1))
    embeddings = np.full((6, 1), 2.2, np.float32)
    ids = quantiser.codes(embeddings)
    counts = np.array([1, 1, 9, 5, 1, 2])
    new = resolve_collisions(ids, counts, embeddings, quantiser)
    assert new[:, 0].tolist() == [0, 2, 2, 3, 2, 1]
    assert SemanticIds.build(new, counts, 4).numbers([2]).tolist() == [2, 1, 4]
