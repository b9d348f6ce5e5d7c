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
        places = model.places(encoded, tokens)
        given = (tokens > 0)[:, None, :] if mask is None else mask
        return model.copy_head(scores, x, places, given)

    return Seq2Seq(COPYING).apply({"params": params}, method=method)


def drawn(seed=0, states=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return draw(2, states, 32), draw(2, states, 16), draw(2, 10, 16)


def test_scores_are_those_of_a_slow_reference(params):
    scores, x, encoded = drawn()
    found = apply_head(params, scores, x, encoded, jnp.asarray(TOKENS))
    wanted = slow(params["copy_head"], scores, x, encoded, TOKENS)
    np.testing.assert_allclose(found.logits(), wanted, atol=1e-5)
    logs = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    for token in (0, 1, 4, 6, 31):
        one = found.log_probabilities(jnp.full((2, 3), token))
        np.testing.assert_allclose(one, logs[:, :, token], atol=1e-5)


def test_the_first_is_first(params):
    scores, x, encoded = drawn(3)
    found = apply_head(params, scores, x, encoded, jnp.asarray(TOKENS))
    wanted = np.asarray(found.logits())
    assert found.ranked_first(jnp.asarray(wanted.argmax(-1))).all()
    assert not found.ranked_first(jnp.asarray(wanted.argmin(-1))).any()


def test_far_scores_neither_overflow_nor_vanish(params):
    scores, x, encoded = drawn()
    tokens = jnp.asarray(TOKENS)

    def dense(x):
        return apply_head(params, scores, x, encoded, tokens).logits().sum()

    def chosen(x):
        found = apply_head(params, scores, x, encoded, tokens)
        return found.log_probabilities(jnp.full((2, 3), 6)).sum()

    for total in (dense, chosen):
        for far in (1e3, -1e3):
            found, slope = jax.value_and_grad(total)(far * x)
            assert np.isfinite(found) and np.isfinite(slope).all()


def test_what_may_not_be_read_adds_nothing(params):
    scores, x, encoded = drawn()
    nothing = jnp.zeros((2, 1, 10), bool)
    found = apply_head(params, scores, x, encoded, jnp.asarray(TOKENS), nothing)
    np.testing.assert_array_equal(found.logits(), scores)
    logs = jax.nn.log_softmax(scores)[:, :, 6]
    np.testing.assert_allclose(found.log_probabilities(jnp.full((2, 3), 6)), logs, atol=1e-6)


def test_gradients_agree_with_finite_differences(params):
    scores, x, encoded = drawn()
    tokens, weights = jnp.asarray(TOKENS), np.random.default_rng(1).normal(size=(2, 3, 32))

    def total(pair):
        return (apply_head(params, *pair, tokens).logits() * weights).sum()

    jax.test_util.check_grads(
        total, ((scores, x, encoded),), order=1, modes=["rev"], eps=1e-2, rtol=2e-2
    )


def test_it_learns_sooner_to_write_what_the_input_holds():
    """Targets are the first item of the input, ends included: all of it can be read off."""
    import optax

    def batch(seed, rows=64):
        items = np.random.default_rng(seed).integers(3, 19, (rows, 2, 4))
        column = lambda token: np.full((rows, 1), token)  # noqa: E731
        tokens = [column(20), column(21), items[:, 0], column(22), items[:, 1], column(1)]
        return np.concatenate(tokens, axis=1), np.concatenate([items[:, 0], column(1)], axis=1)

    def learnt(copying):
        model = Seq2Seq(dataclasses.replace(COPYING, copying=copying, segments=True))
        params = meshes.unbox(model.init(jax.random.key(0), *batch(0))["params"])
        optimizer = optax.adam(1e-2)
        state = optimizer.init(params)

        def loss(params, tokens, targets):
            shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
            scores = model.apply({"params": params}, tokens, shifted, method="score")
            return -scores.log_probabilities(targets).sum(-1).mean()

        @jax.jit
        def update(params, state, tokens, targets):
            changes, state = optimizer.update(jax.grad(loss)(params, tokens, targets), state)
            return optax.apply_updates(params, changes), state

        for step in range(60):
            params, state = update(params, state, *batch(step))
        return loss(params, *batch(1000))

    assert learnt(copying=True) < 0.7 * learnt(copying=False)
