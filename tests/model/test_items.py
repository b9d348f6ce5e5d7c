"""Items in the encoder, and candidates as tokens: what must hold whatever the weights."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.model.candidates import either_way
from onesug_jax.model.items import Items, count_features, enhanced_prefix, past_features
from onesug_jax.model.seq2seq import Seq2Seq
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


def opened(weights, text, given, arrays):
    encoded = apply(weights, text, items=given, tables=arrays, method="encode")
    ids = apply(weights, text, given, method="given")
    return encoded, apply(weights, encoded, ids, given, method="opening")


def changed(given: Items, **arrays) -> Items:
    return given.replace(**arrays)


@pytest.mark.long
def test_candidates_may_come_in_any_order(weights):
    given, arrays = items(), tables()
    order = np.random.default_rng(1).permutation(5)
    other = changed(given, candidates=given.candidates[:, order], counts=given.counts[:, order])
    _, one = opened(weights, tokens(), given, arrays)
    _, two = opened(weights, tokens(), other, arrays)
    np.testing.assert_allclose(one.log_probabilities[:, order], two.log_probabilities, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_no_loss_and_no_gradient(weights, remat):
    given, text, arrays = items(), tokens(), tables()

    def loss(params, config):
        def first(model):
            encoded = model.encode(text, items=given, tables=arrays)
            return -model.opening(encoded, model.given(text, given), given).log_probabilities

        return Seq2Seq(config).apply({"params": params}, method=first)[:, :3].sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    wanted, found = (
        gradient(weights, dataclasses.replace(CONFIG, remat=name)) for name in ("none", remat)
    )
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1])) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), wanted, found)


@pytest.mark.long
def test_empty_places_change_nothing(weights):
    given, arrays = items(), tables()

    def wider(x, room):
        return np.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2), constant_values=0)

    noise = np.random.default_rng(2).normal(size=(2, 3, given.counts.shape[2]))
    filled = changed(
        given,
        candidates=wider(given.candidates, 3),
        counts=np.concatenate([given.counts, noise.astype(np.float32)], axis=1),
        history=wider(given.history, 2),
        minutes=np.concatenate([given.minutes, np.full((2, 2), 7.0, np.float32)], axis=1),
    )
    _, one = opened(weights, tokens(), given, arrays)
    _, two = opened(weights, np.pad(tokens(), ((0, 0), (0, 4))), filled, arrays)
    np.testing.assert_allclose(one.log_probabilities, two.log_probabilities[:, :5], atol=1e-4)
    assert np.all(np.asarray(two.log_probabilities[:, 5:]) < -1e8)
    np.testing.assert_allclose(one.mass, two.mass, atol=1e-5)


def test_the_history_is_seen_and_its_age(weights):
    given, arrays = items(), tables()
    _, one = opened(weights, tokens(), given, arrays)
    for other in (
        changed(given, history=given.history[:, ::-1].copy()),
        changed(given, minutes=given.minutes + 60),
        changed(given, clock=(given.clock + 1) % 7),
    ):
        _, two = opened(weights, tokens(), other, arrays)
        assert not np.allclose(one.log_probabilities[0], two.log_probabilities[0], atol=1e-4)


@pytest.mark.long
def test_all_outputs_together_have_probability_one(weights):
    """All candidates, all texts that end within three tokens, and all beginnings of longer ones."""
    given, arrays, text = items(batch=1), tables(), tokens(1)
    encoded, opening = opened(weights, text, given, arrays)
    ids = apply(weights, text, given, method="given")
    ended = [(*body, EOS) for n in range(3) for body in itertools.product(_going_on(), repeat=n)]
    begun = list(itertools.product(_going_on(), repeat=3))
    table = np.zeros((len(ended) + len(begun), 3), np.int32)
    for row, sequence in zip(table, ended + begun, strict=True):
        row[: len(sequence)] = sequence
    shifted = np.pad(table, ((0, 0), (1, 0)))[:, :-1]
    encoded, ids, given = jax.tree.map(
        lambda x: np.repeat(np.asarray(x), len(table), 0), (encoded, ids, given)
    )
    scores = apply(weights, encoded, ids, shifted, None, None, given, method="decode")
    logs = scores.log_probabilities(jnp.asarray(table))
    lengths = np.array([len(sequence) for sequence in ended + begun])
    written = np.where(np.arange(3) < lengths[:, None], logs, 0.0).sum(axis=1)
    total = np.exp(written).sum() + np.exp(opening.log_probabilities).sum()
    assert total == pytest.approx(1.0, abs=1e-4)
    assert 0.01 < np.exp(written).sum() < 0.99  # both ways have a share


def _going_on():
    return [token for token in range(VOCAB) if token != EOS]


def test_a_query_has_the_probability_of_both_ways():
    candidates = jnp.log(jnp.array([[0.2, 0.1], [0.3, 0.4]]))
    written = jnp.log(jnp.array([0.05, 0.07]))
    found = either_way(candidates, written, jnp.array([2, 0]))
    np.testing.assert_allclose(np.exp(found), [0.15, 0.07], rtol=1e-6)


def test_the_enhanced_prefix_is_drawn_towards_what_its_searches_led_to():
    given, arrays = items(), tables()
    counts = np.full(given.counts.shape, np.log(1e-12), np.float32)
    counts[0, 1, -2], counts[0, 3, -2] = np.log(3), np.log(1)
    given = changed(given, counts=counts, prefix_row=np.array([1, 0], np.int32))
    found = enhanced_prefix(given, arrays, weight=0.25)
    one, three = (arrays.vectors[given.candidates[0, place]] for place in (1, 3))
    wanted = 0.75 * arrays.prefix_vectors[1] + 0.25 * (3 * one + three) / 4
    np.testing.assert_allclose(found[0], wanted / np.linalg.norm(wanted), atol=1e-6)
    np.testing.assert_allclose(found[1], 0.0)  # neither an indexed prefix nor a search


@pytest.mark.long
@pytest.mark.parametrize("shown", [True, False])
def test_the_enhanced_prefix_can_be_taken_away(weights, shown):
    def encoded(share):
        config = dataclasses.replace(CONFIG, enhance=share, enhanced_prefix=shown)
        named = {"items": items(), "tables": tables(), "method": "encode"}
        return jax.jit(functools.partial(Seq2Seq(config).apply, **named))(
            {"params": weights}, tokens()
        )

    assert np.allclose(encoded(0.2), encoded(0.8)) != shown


def test_features_of_counts_are_those_of_a_slow_reference():
    given = items()
    given = changed(given, candidates=np.where(np.arange(5) < [[5], [3]], given.candidates, 0))
    found = np.asarray(count_features(given))
    for b, size in enumerate((5, 3)):
        logs = np.maximum(given.counts[b, :size].astype(float), -6)
        share = logs - np.log(np.exp(logs).sum(axis=0))
        ranks = 1 + (logs[None] > logs[:, None]).sum(axis=1)[:, [0, 2]]
        wanted = [logs / 4, (logs - logs.max(axis=0)) / 4, share / 4, np.log(ranks) / 4]
        wanted = np.concatenate([*wanted, ranks <= 10], axis=1)
        np.testing.assert_allclose(found[b, :size], wanted, atol=1e-5)


def test_ages_and_places_run_from_the_newest_to_long_ago():
    found = np.asarray(past_features(jnp.array([[0.0, 10.0, 1e6]])))[0]
    np.testing.assert_allclose(found[0], [1, 1, 1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found[1, 0], np.exp(-1), rtol=1e-5)
    np.testing.assert_allclose(found[2, :3], 0, atol=1e-6)
    assert np.all(np.diff(found[:, [3, 5]], axis=0) > 0) and np.all(np.diff(found[:, 4]) < 0)


def test_counts_of_parameters_are_the_arrays():
    made = params()
    assert CONFIG.parameters() == sum(x.size for x in jax.tree.leaves(made))


@pytest.mark.eight_devices
def test_every_parameter_has_a_place_on_every_mesh():
    from onesug_jax.model.seq2seq import initial

    boxed = jax.eval_shape(lambda key: initial(CONFIG, key), jax.random.key(0))
    placed = layout.param_shardings(boxed, meshes.make_mesh(data=2, fsdp=2, tensor=2))
    assert "tensor" in str(placed["encoder"]["attention"]["multiples"].spec)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UserError, match="positions_per_layer"):
        dataclasses.replace(CONFIG, positions_per_layer=True)
