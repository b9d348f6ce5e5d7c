"""Segments: a token has the row of its item's marker, a marker that of a marker right before it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train import mesh as meshes
from tests.tiny_model import tiny_config

PLAIN = tiny_config(32)
WITH = tiny_config(32, segments=True, first_marker=20, last_marker=25)


@pytest.fixture(scope="module")
def params():
    ones = jnp.ones((1, 4), jnp.int32)
    return meshes.unbox(jax.jit(Seq2Seq(WITH).init)(jax.random.key(0), ones, ones)["params"])


@functools.partial(jax.jit, static_argnums=0)
def encode(config, params, tokens):
    return Seq2Seq(config).apply({"params": params}, tokens, method="encode")


def rows(params, tokens):
    """The inputs of the encoder's layers, by a plain loop over tokens."""
    table, out = np.asarray(params["embedding"]) * 4.0, []  # 4 = sqrt(d_model)
    for row in tokens:
        opener, previous = None, None
        for token in row:
            is_marker = 20 <= token <= 25
            added = previous if is_marker else opener
            opener, previous = (token, token) if is_marker else (opener, None)
            out.append(table[token] + (table[added] if added and token else 0))
    return np.reshape(out, (*np.shape(tokens), 16))


@pytest.mark.long
def test_rows_are_those_of_a_plain_loop(params):
    tokens = np.array([[5, 20, 6, 7, 21, 8, 25, 9, 1, 0], [20, 23, 24, 1, 20, 9, 22, 21, 1, 0]])
    model = Seq2Seq(WITH)
    result = model.apply(
        {"params": params},
        jnp.asarray(tokens),
        method=lambda m, t: m.look_up(t, t[:, :0])[0],
    )
    np.testing.assert_allclose(result, rows(params, tokens), atol=1e-5)


@pytest.mark.long
def test_they_add_no_parameters_and_change_the_states(params):
    assert WITH.parameters() == PLAIN.parameters()
    tokens = jnp.array([[20, 3, 21, 3, 1]])
    plain, marked = (encode(config, params, tokens) for config in (PLAIN, WITH))
    assert not np.allclose(plain, marked)
    unmarked = jnp.array([[3, 4, 1, 0, 0]])
    plain, marked = (encode(config, params, unmarked) for config in (PLAIN, WITH))
    np.testing.assert_array_equal(plain, marked)
