"""Relations between items, and attention biased by them, against slow references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.model.relations import (
    KEY_FEATURES,
    RELATIONS,
    RelationAttention,
    overlaps,
    relations,
)
from onesug_jax.train.mesh import unbox
from tests.item_cases import CONFIG

KEY = jax.random.key(0)


def random_items():
    """Vectors, words, their weights and numbers of 2 x 6 items."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 6, 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    words = np.zeros((2, 6, 3), np.int32)
    for row in words.reshape(-1, 3):
        own = rng.choice(5, rng.integers(0, 4), replace=False) + 1
        row[: len(own)] = own
    numbers = rng.integers(0, 4, (2, 6)).astype(np.int32)
    return vectors.astype(np.float32), words, words / 2.0, numbers


def slow_overlap(one, other, weight):
    one, other = set(one[one > 0].tolist()), set(other[other > 0].tolist())
    either = sum(weight(word) for word in one | other)
    key = sum(weight(word) for word in other)
    common = sum(weight(word) for word in one & other)
    return [common / either if either else 0.0, common / key if key else 0.0]


@pytest.mark.long
def test_relations_are_those_of_a_slow_reference():
    vectors, words, weights, numbers = random_items()
    projections = np.random.default_rng(3).normal(size=(3, 4, 2)).astype(np.float32)
    result = np.asarray(relations(vectors, projections, words, weights, numbers, keys=4))
    assert result.shape == (2, len(RELATIONS), 6, 4)

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    for b in range(2):
        for i in range(6):
            for j in range(4):
                shared = slow_overlap(words[b, i], words[b, j], lambda word: word / 2)
                expected = [vectors[b, i] @ vectors[b, j], *shared]
                expected.append(float(numbers[b, i] == numbers[b, j] != 0))
                alike, later, sooner = projections.transpose(0, 2, 1)
                for one, other in ((alike, alike), (later, sooner)):
                    expected.append(cosine(one @ vectors[b, i], other @ vectors[b, j]))
                np.testing.assert_allclose(result[b, :, i, j], expected, atol=1e-5)


@pytest.mark.long
def test_a_query_overlaps_itself_and_no_empty_one():
    words = np.array([[[3, 9, 0], [0, 0, 0]]], np.int32)
    weights = (words > 0).astype(np.float32)
    for overlap in overlaps(words, weights, words, weights):
        np.testing.assert_allclose(overlap[0], [[1, 0], [0, 0]])


@pytest.mark.long
def test_attention_is_that_of_a_slow_reference():
    """One position and one head at a time, in float64."""
    rng = np.random.default_rng(1)
    batch, queries, keys = 2, 5, 3
    width, heads = CONFIG.d_model, CONFIG.num_heads
    x, context = rng.normal(size=(batch, queries, width)), rng.normal(size=(batch, keys, width))
    bias = np.where(rng.random((batch, 1, 1, keys)) < 0.3, -1e9, 0.0)
    bias = bias + rng.normal(size=(1, heads, queries, keys))
    related = rng.random((batch, len(RELATIONS), queries, keys))
    features = rng.random((batch, keys, KEY_FEATURES))
    inputs = [np.asarray(a, np.float32) for a in (x, context, bias, related, features)]
    module = RelationAttention(CONFIG)
    variables = unbox(jax.jit(lambda key: module.init(key, *inputs, True, method="related"))(KEY))
    variables = jax.tree.map(
        lambda p: np.asarray(p) + 0.2 * rng.normal(size=p.shape).astype(np.float32), variables
    )
    result = jax.jit(lambda v: module.apply(v, *inputs, True, method="related"))(variables)

    p = {name: np.asarray(value, float) for name, value in variables["params"].items()}
    assert p["query"].shape[2] == CONFIG.head_dim
    for b in range(batch):
        for i in range(queries):
            out, attended = np.zeros(width), np.zeros((len(RELATIONS) + 1, heads))
            for h in range(heads):
                query = x[b, i] @ p["query"][:, h]
                scores = [
                    query @ (context[b, j] @ p["key"][:, h])
                    + bias[b, h, i, j]
                    + related[b, :, i, j] @ p["multiples"][:, h]
                    + features[b, j] @ p["key_bias"][:, h]
                    for j in range(keys)
                ]
                weights = np.exp(np.array([*scores, p["sink"][h]]) - max(scores + [p["sink"][h]]))
                weights = (weights / weights.sum())[:keys]
                values = context[b] @ p["value"][:, h]
                out += weights @ values @ p["out"][h]
                attended[:-1, h], attended[-1, h] = related[b, :, i] @ weights, weights.sum()
            hidden = np.einsum("rh,rhd->d", 3 * attended, p["found_in"])
            out += hidden / (1 + np.exp(-hidden)) @ p["found_out"]
            np.testing.assert_allclose(result[b, i], out, rtol=2e-4, atol=2e-4)


@pytest.mark.long
def test_keys_far_below_the_sink_add_nothing():
    module, zeros = RelationAttention(CONFIG), jnp.zeros((1, 1, CONFIG.d_model))
    related, features = jnp.zeros((1, len(RELATIONS), 1, 2)), jnp.zeros((1, 2, KEY_FEATURES))
    context = jnp.ones((1, 2, CONFIG.d_model))
    inputs = (zeros, context, jnp.full((1, 1, 1, 2), -1e9), related, features, True)
    variables = jax.jit(lambda key: module.init(key, *inputs, method="related"))(KEY)
    result = jax.jit(lambda v: module.apply(v, *inputs, method="related"))(variables)
    np.testing.assert_allclose(result, 0.0, atol=1e-6)
