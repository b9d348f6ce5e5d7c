"""The copy head: places of the input beside the vocabulary in one softmax."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train import mesh as meshes

PLAIN = ModelConfig(
    vocab_size=32,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=32,
    encoder_layers=1,
    decoder_layers=1,
    first_marker=20,
    last_marker=25,
    soft_id=26,
)
COPYING = dataclasses.replace(PLAIN, copying=True)
TOKENS = np.array([[20, 5, 26, 21, 6, 7, 22, 6, 9, 1], [20, 3, 21, 4, 4, 1, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def params():
    ones = jnp.ones((1, 4), jnp.int32)
    made = meshes.unbox(Seq2Seq(COPYING).init(jax.random.key(0), ones, ones)["params"])
    return {**made, "copy_head": {**made["copy_head"], "bias": jnp.float32(0.7)}}


def slow(head, scores, x, encoded, tokens):
    """One state and one place at a time, in float64."""
    query, key = (np.asarray(head[name], float) for name in ("query", "key"))
    out = np.exp(np.asarray(scores, float))
    for b, row in enumerate(tokens):
        for place in range(1, len(row)):
            token = row[place]
            if token == 0 or token == 26:
                continue
            written = 1 if 20 <= token <= 25 else token
            for q in range(x.shape[1]):
                alike = (x[b, q] @ query) @ (encoded[b, place - 1] @ key) / 4 + 0.7
                out[b, q, written] += np.exp(alike)
    return np.log(out)


def apply_head(params, scores, x, encoded, tokens, mask=None):
    def method(model):
        keys = model.copy_keys(encoded)
        given = (tokens > 0)[:, None, :] if mask is None else mask
        return model.copy_head(scores, x, keys, tokens, given)

    return Seq2Seq(COPYING).apply({"params": params}, method=method)


def drawn(seed=0, states=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return draw(2, states, 32), draw(2, states, 16), draw(2, 10, 16)


def test_scores_are_those_of_a_slow_reference(params):
    scores, x, encoded = drawn()
    found = apply_head(params, scores, x, encoded, jnp.asarray(TOKENS))
    wanted = slow(params["copy_head"], scores, x, encoded, TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_far_scores_neither_overflow_nor_vanish(params):
    scores, x, encoded = drawn()
    tokens = jnp.asarray(TOKENS)

    def total(x):
        return apply_head(params, scores, x, encoded, tokens).sum()

    for far in (1e3, -1e3):
        found, slope = jax.value_and_grad(total)(far * x)
        assert np.isfinite(found) and np.isfinite(slope).all()


def test_what_may_not_be_read_adds_nothing(params):
    scores, x, encoded = drawn()
    nothing = jnp.zeros((2, 1, 10), bool)
    found = apply_head(params, scores, x, encoded, jnp.asarray(TOKENS), nothing)
    np.testing.assert_array_equal(found, scores)


def test_gradients_agree_with_finite_differences(params):
    scores, x, encoded = drawn()
    tokens, weights = jnp.asarray(TOKENS), np.random.default_rng(1).normal(size=(2, 3, 32))

    def total(pair):
        return (apply_head(params, *pair, tokens) * weights).sum()

    jax.test_util.check_grads(
        total, ((scores, x, encoded),), order=1, modes=["rev"], eps=1e-2, rtol=2e-2
    )


def test_an_unseen_query_is_learnt_to_be_copied_with_its_end():
    """Trained on the best related query as target, the model writes one of pieces that it has never
    written before.
    """
    import optax

    rng = np.random.default_rng(0)

    def batch(low, high, rows=64):
        items = rng.integers(low, high, (rows, 2, 3))
        ends = np.full((rows, 1), 1)
        first, second = (np.full((rows, 1), marker) for marker in (21, 22))
        tokens = np.concatenate([first, items[:, 0], second, items[:, 1], ends], axis=1)
        tokens = np.concatenate([np.full((rows, 1), 20), tokens], axis=1)
        return tokens, np.concatenate([items[:, 0], ends], axis=1)

    model = Seq2Seq(dataclasses.replace(COPYING, segments=True))
    params = meshes.unbox(model.init(jax.random.key(0), *batch(3, 18, 1))["params"])
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    def log_likelihood(params, tokens, targets):
        shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        logits = model.apply({"params": params}, tokens, shifted)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum(-1).mean()

    @jax.jit
    def update(params, state, tokens, targets):
        slope = jax.grad(lambda p: -log_likelihood(p, tokens, targets))(params)
        changes, state = optimizer.update(slope, state)
        return optax.apply_updates(params, changes), state

    for _ in range(300):
        params, state = update(params, state, *batch(3, 15))
    # Pieces 15 to 18 were never a target; by heart each has less than a chance in a thousand.
    assert log_likelihood(params, *batch(15, 19)) > np.log(0.1)
