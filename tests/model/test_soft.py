"""The soft token: a vector of the text encoder replaces a row of the token table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train import mesh as meshes
from tests.tiny_model import tiny_config

SOFT = 7
CONFIG = tiny_config(32)
WITH = tiny_config(32, soft_dim=5, soft_id=SOFT)


@pytest.fixture(scope="module")
def params():
    ones = jnp.ones((1, 4), jnp.int32)
    return meshes.unbox(jax.jit(Seq2Seq(WITH).init)(jax.random.key(0), ones, ones)["params"])


@jax.jit
def encode(params, tokens, soft):
    tokens = jnp.asarray(tokens)
    return Seq2Seq(WITH).apply({"params": params}, tokens, soft=soft, method="encode")


def test_the_projection_counts_as_parameters(params):
    assert WITH.parameters() == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert WITH.parameters() - CONFIG.parameters() == 5 * 16


def test_a_vector_that_projects_to_the_row_of_a_token_acts_like_the_token(params):
    """The projection maps the vector e_0 to the row of token 9."""
    row = params["embedding"][9]
    changed = {**params, "soft_projection": params["soft_projection"].at[0].set(row)}
    vector = jnp.zeros((1, 1, 5)).at[0, 0, 0].set(1.0)
    soft = encode(changed, [[3, SOFT, 4]], vector)
    plain = encode(changed, [[3, 9, 4]], vector)
    np.testing.assert_allclose(soft, plain, atol=1e-5)


@pytest.mark.long
def test_the_nth_soft_token_has_the_nth_vector(params):
    """Two packed requests in one row, each with its own vector."""
    vectors = jax.random.normal(jax.random.key(1), (1, 2, 5))
    both = encode(params, [[3, SOFT, 5, SOFT, 6, 0]], vectors)
    swapped = encode(params, [[3, SOFT, 5, SOFT, 6, 0]], vectors[:, ::-1])
    assert not np.allclose(both, swapped)
    row = jnp.asarray(vectors[0] @ params["soft_projection"])
    changed = {**params, "embedding": params["embedding"].at[10:12].set(row)}
    plain = encode(changed, [[3, 10, 5, 11, 6, 0]], vectors)
    np.testing.assert_allclose(both, plain, atol=1e-5)


def test_vectors_have_no_effect_without_a_soft_token(params):
    vectors = jax.random.normal(jax.random.key(2), (1, 1, 5))
    np.testing.assert_array_equal(
        encode(params, [[3, 4, 5]], vectors), encode(params, [[3, 4, 5]], 0 * vectors)
    )
