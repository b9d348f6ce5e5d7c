"""Items in the encoder, and candidates as tokens: properties for any weights."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.model.candidates import either_way
from onesug_jax.model.items import count_features, enhanced_prefix, past_features
from onesug_jax.model.seq2seq import Seq2Seq, initial
from onesug_jax.train import layout
from onesug_jax.train import mesh as meshes
from tests.item_cases import CONFIG, items, params, tables, tokens

EOS, VOCAB = 1, CONFIG.vocab_size


@pytest.fixture(scope="module")
def weights():
    return params()


@functools.partial(jax.jit, static_argnames="method")
def apply(weights, *args, method, **named):
    return Seq2Seq(CONFIG).apply({"params": weights}, *args, method=method, **named)


def encode_and_open(weights, text, request, arrays):
    encoded = apply(weights, text, items=request, tables=arrays, method="encode")
    mask = apply(weights, text, request, method="given")
    return encoded, apply(weights, encoded, mask, request, method="opening")


@pytest.mark.long
def test_the_order_of_candidates_has_no_effect(weights):
    request, arrays = items(), tables()
    order = np.random.default_rng(1).permutation(5)
    other = request.replace(
        candidates=request.candidates[:, order], counts=request.counts[:, order]
    )
    _, one = encode_and_open(weights, tokens(), request, arrays)
    _, two = encode_and_open(weights, tokens(), other, arrays)
    np.testing.assert_allclose(one.log_probabilities[:, order], two.log_probabilities, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_no_loss_and_no_gradient(weights, remat):
    request, text, arrays = items(), tokens(), tables()

    def loss(params, config):
        def first(model):
            encoded = model.encode(text, items=request, tables=arrays)
            return -model.opening(encoded, model.given(text, request), request).log_probabilities

        return Seq2Seq(config).apply({"params": params}, method=first)[:, :3].sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected, found = (
        gradient(weights, dataclasses.replace(CONFIG, remat=name)) for name in ("none", remat)
    )
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected[1])) > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found
    )


@pytest.mark.long
def test_padding_has_no_effect(weights):
    request, arrays = items(), tables()
    noise = np.random.default_rng(2).normal(size=(2, 3, request.counts.shape[2]))
    padded = request.replace(
        candidates=np.pad(request.candidates, ((0, 0), (0, 3))),
        counts=np.concatenate([request.counts, noise.astype(np.float32)], axis=1),
        history=np.pad(request.history, ((0, 0), (0, 2))),
        minutes=np.concatenate([request.minutes, np.full((2, 2), 7.0, np.float32)], axis=1),
    )
    _, one = encode_and_open(weights, tokens(), request, arrays)
    _, two = encode_and_open(weights, np.pad(tokens(), ((0, 0), (0, 4))), padded, arrays)
    np.testing.assert_allclose(one.log_probabilities, two.log_probabilities[:, :5], atol=1e-4)
    assert np.all(np.asarray(two.log_probabilities[:, 5:]) < -1e8)
    np.testing.assert_allclose(one.mass, two.mass, atol=1e-5)


def test_the_history_its_age_and_the_clock_have_an_effect(weights):
    request, arrays = items(), tables()
    _, one = encode_and_open(weights, tokens(), request, arrays)
    for other in (
        request.replace(history=request.history[:, ::-1].copy()),
        request.replace(minutes=request.minutes + 60),
        request.replace(clock=(request.clock + 1) % 7),
    ):
        _, two = encode_and_open(weights, tokens(), other, arrays)
        assert not np.allclose(one.log_probabilities[0], two.log_probabilities[0], atol=1e-4)


@pytest.mark.long
def test_the_probabilities_of_all_outputs_add_up_to_one(weights):
    """All candidates, all texts that end within three tokens, and all prefixes of longer ones."""
    request, arrays, text = items(batch=1), tables(), tokens(1)
    encoded, opening = encode_and_open(weights, text, request, arrays)
    mask = apply(weights, text, request, method="given")
    body = [token for token in range(VOCAB) if token != EOS]
    sequences = [(*ids, EOS) for n in range(3) for ids in itertools.product(body, repeat=n)]
    sequences += itertools.product(body, repeat=3)
    table = np.zeros((len(sequences), 3), np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence)] = sequence
    shifted = np.pad(table, ((0, 0), (1, 0)))[:, :-1]
    encoded, mask, request = jax.tree.map(
        lambda x: np.repeat(np.asarray(x), len(table), 0), (encoded, mask, request)
    )
    scores = apply(weights, encoded, mask, shifted, None, None, request, method="decode")
    logs = scores.log_probabilities(jnp.asarray(table))
    lengths = np.array([len(sequence) for sequence in sequences])
    written = np.where(np.arange(3) < lengths[:, None], logs, 0.0).sum(axis=1)
    total = np.exp(written).sum() + np.exp(opening.log_probabilities).sum()
    assert total == pytest.approx(1.0, abs=1e-4)
    assert 0.01 < np.exp(written).sum() < 0.99  # candidates and texts both have a share


def test_a_query_has_the_sum_of_both_probabilities():
    candidates = jnp.log(jnp.array([[0.2, 0.1], [0.3, 0.4]]))
    written = jnp.log(jnp.array([0.05, 0.07]))
    logs = either_way(candidates, written, jnp.array([2, 0]))
    np.testing.assert_allclose(np.exp(logs), [0.15, 0.07], rtol=1e-6)


def test_the_enhanced_prefix_is_mixed_with_the_mean_of_its_searches():
    arrays = tables()
    counts = np.full(items().counts.shape, np.log(1e-12), np.float32)
    counts[0, 1, -2], counts[0, 3, -2] = np.log(3), np.log(1)
    request = items().replace(counts=counts, prefix_row=np.array([1, 0], np.int32))
    enhanced = enhanced_prefix(request, arrays, weight=0.25)
    one, three = (arrays.vectors[request.candidates[0, i]] for i in (1, 3))
    expected = 0.75 * arrays.prefix_vectors[1] + 0.25 * (3 * one + three) / 4
    np.testing.assert_allclose(enhanced[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(enhanced[1], 0.0)  # neither an indexed prefix nor a search


@pytest.mark.long
@pytest.mark.parametrize("enabled", [True, False])
def test_the_enhanced_prefix_can_be_disabled(weights, enabled):
    def encoded(share):
        config = dataclasses.replace(CONFIG, enhance=share, enhanced_prefix=enabled)
        named = {"items": items(), "tables": tables(), "method": "encode"}
        return jax.jit(functools.partial(Seq2Seq(config).apply, **named))(
            {"params": weights}, tokens()
        )

    assert np.allclose(encoded(0.2), encoded(0.8)) != enabled


def test_features_of_counts_are_those_of_a_slow_reference():
    request = items()
    request = request.replace(candidates=np.where(np.arange(5) < [[5], [3]], request.candidates, 0))
    features = np.asarray(count_features(request))
    for b, size in enumerate((5, 3)):
        logs = np.maximum(request.counts[b, :size].astype(float), -6)
        share = logs - np.log(np.exp(logs).sum(axis=0))
        ranks = 1 + (logs[None] > logs[:, None]).sum(axis=1)[:, [0, 2]]
        expected = [logs / 4, (logs - logs.max(axis=0)) / 4, share / 4, np.log(ranks) / 4]
        expected = np.concatenate([*expected, ranks <= 10], axis=1)
        np.testing.assert_allclose(features[b, :size], expected, atol=1e-5)


def test_features_of_ages_and_positions_are_monotonic():
    features = np.asarray(past_features(jnp.array([[0.0, 10.0, 1e6]])))[0]
    np.testing.assert_allclose(features[0], [1, 1, 1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(features[1, 0], np.exp(-1), rtol=1e-5)
    np.testing.assert_allclose(features[2, :3], 0, atol=1e-6)
    assert np.all(np.diff(features[:, [3, 5]], axis=0) > 0) and np.all(np.diff(features[:, 4]) < 0)


def test_the_number_of_parameters_is_that_of_the_arrays():
    assert CONFIG.parameters() == sum(x.size for x in jax.tree.leaves(params()))


@pytest.mark.eight_devices
def test_every_parameter_has_a_sharding():
    boxed = jax.eval_shape(lambda key: initial(CONFIG, key), jax.random.key(0))
    shardings = layout.param_shardings(boxed, meshes.make_mesh(data=2, fsdp=2, tensor=2))
    assert "tensor" in str(shardings["encoder"]["attention"]["multiples"].spec)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UserError, match="positions_per_layer"):
        dataclasses.replace(CONFIG, positions_per_layer=True)
