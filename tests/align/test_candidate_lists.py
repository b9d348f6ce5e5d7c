"""Training with candidates as output tokens: pretraining loss, and lists of all candidates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.align.candidate_lists import candidate_scores, list_mask, positive_first
from onesug_jax.align.pretrain import pretrain_stage
from onesug_jax.align.rwr import PreferenceConfig, rwr_stage
from onesug_jax.logs.schema import Level
from onesug_jax.model.seq2seq import Seq2Seq
from tests.item_cases import CONFIG, features, items, params, tables, tokens

LEARNING = dataclasses.replace(CONFIG, encoder_layers=1)


def batch():
    """Two requests; the target of the second is not a candidate."""
    example = items()
    targets = np.array([[3, 4, 1], [5, 1, 0]], np.int32)
    rng = np.random.default_rng(0)
    return {
        "encoder_input_tokens": tokens(),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
        **features(example),
        "target_candidate": np.array([2, 0], np.int32),
        "weight": np.array([3.0, 1.0], np.float32),
        "rewards": rng.choice([0.0, 0.2, 0.5], (2, 5)).astype(np.float32),
        "levels": rng.choice([Level.SHOW, Level.NOT_SHOW], (2, 5)).astype(np.int32),
    }


@pytest.fixture(scope="module")
def weights():
    return params(LEARNING)


@jax.jit
def model_scores(weights, args, example, arrays):
    model = Seq2Seq(LEARNING)
    return model.apply({"params": weights}, *args, items=example, tables=arrays, method="score")


@jax.jit
def candidate_logs(weights, data, arrays):
    return candidate_scores(Seq2Seq(LEARNING), weights, data, arrays)


def slow_logs(weights, data, arrays):
    """For both rows: log p of every candidate token, of the target's pieces, and of writing."""
    args = (data["encoder_input_tokens"], data["decoder_input_tokens"])
    scores = model_scores(weights, args, items(), arrays)
    vocabulary, candidates = np.asarray(scores.vocabulary, float), np.asarray(scores.candidates)
    tokens, written, writing = [], [], []
    for b, target in enumerate(data["decoder_target_tokens"]):
        first = np.concatenate([vocabulary[b, 0], candidates[b]])
        total = np.log(np.exp(first).sum())
        tokens.append(candidates[b] - total)
        logs = [vocabulary[b, 0, target[0]] - total]
        for t in np.flatnonzero(target)[1:]:
            later = vocabulary[b, t]
            logs.append(later[target[t]] - np.log(np.exp(later).sum()))
        written.append(sum(logs))
        writing.append(np.log(np.exp(vocabulary[b, 0]).sum()) - total)
    return np.array(tokens), np.array(written), np.array(writing)


@pytest.mark.long
def test_the_loss_sums_candidate_token_and_pieces(weights):
    arrays, data = tables(), batch()
    stage = pretrain_stage(LEARNING, arrays, writing=0.2, written_share=1.0)
    total, weight, sums = jax.jit(stage.loss_fn)(weights, data, jax.random.key(0), arrays)
    token_logs, written, writing = slow_logs(weights, data, arrays)
    logs = np.array([np.logaddexp(token_logs[0, 1], written[0]), writing[1]])
    expected = -(np.array([3, 1]) * (logs + 0.2 * (written - writing))).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert weight == 4 and stage.frozen is arrays
    assert sums["accuracy"] == 3 * (token_logs[0].argmax() == 1)


@pytest.mark.long
def test_rows_whose_target_is_not_a_candidate_are_decoded_first(weights):
    arrays, data = tables(), batch()
    stage = pretrain_stage(LEARNING, arrays, writing=0.2, written_share=0.5)
    total, weight, _ = jax.jit(stage.loss_fn)(weights, data, jax.random.key(0), arrays)
    token_logs, written, writing = slow_logs(weights, data, arrays)
    expected = -(3 * token_logs[0, 1] + writing[1] + 0.2 * (written[1] - writing[1]))
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert weight == 4


@pytest.mark.long
def test_decoded_rows_are_chosen_within_each_group(weights):
    """In copies of 16 rows, the four rows without a candidate are decoded in every copy."""
    arrays = tables()
    place = np.array([2] * 12 + [0] * 4, np.int32)
    data = jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], 16, axis=0), batch())
    data |= {"target_candidate": place, "weight": np.ones(16, np.float32)}
    stage = pretrain_stage(LEARNING, arrays, writing=0.2)
    loss = jax.jit(stage.loss_fn)
    one = loss(weights, data, jax.random.key(0), arrays)
    many = jax.tree.map(lambda x: np.tile(x, (3, *[1] * (x.ndim - 1))), data)
    total, weight, _ = loss(weights, many, jax.random.key(1), arrays)
    np.testing.assert_allclose(total, 3 * one[0], rtol=1e-4)
    assert weight == 48
    shuffled = jax.tree.map(lambda x: x[::-1], many)
    np.testing.assert_allclose(
        loss(weights, shuffled, jax.random.key(1), arrays)[0], total, rtol=1e-4
    )


def uses_of_the_token_table(jaxpr, shape):
    """The numbers of gathers from, and scatter-adds into, arrays of this shape in a jaxpr."""
    counts = np.zeros(2, int)
    for equation in jaxpr.eqns:
        operand = getattr(equation.invars[0], "aval", None) if equation.invars else None
        if operand is not None and getattr(operand, "shape", None) == shape:
            name = equation.primitive.name
            counts += [name == "gather", name == "scatter-add"]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                counts += uses_of_the_token_table(inner, shape)
    return counts


@pytest.mark.long
@pytest.mark.parametrize("make", [pretrain_stage, rwr_stage])
def test_the_token_table_is_read_once_and_its_gradient_written_once(weights, make):
    arrays = tables()
    config = dataclasses.replace(LEARNING, segments=True, first_marker=3, last_marker=5)
    more = () if make is pretrain_stage else (PreferenceConfig(), None)
    stage = make(config, *more, tables=arrays)
    data = batch() | {"reference": np.zeros((2, 5), np.float32)}
    frozen = arrays if make is pretrain_stage else (None, arrays)
    loss = jax.grad(lambda params: stage.loss_fn(params, data, jax.random.key(0), frozen)[0])
    counts = uses_of_the_token_table(
        jax.make_jaxpr(loss)(weights).jaxpr, weights["embedding"].shape
    )
    assert counts.tolist() == [1, 1]


def test_lists_are_all_candidates_the_target_first():
    values = positive_first(jnp.arange(10.0).reshape(2, 5), jnp.array([3, 0]))
    np.testing.assert_array_equal(values[0], [2, 0, 1, 2, 3, 4])
    rows = jnp.array([[4, 5, 6, 0, 0], [7, 8, 0, 0, 0]])
    mask = list_mask(rows, jnp.array([3, 0]))
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(mask[1], [0, 1, 1, 0, 0, 0])


@pytest.mark.long
def test_the_objective_compares_the_target_with_all_candidates(weights):
    arrays, data = tables(), batch()
    old = params(LEARNING, seed=1)
    config = PreferenceConfig(loss="rwr_release", beta=0.3, alpha=0.7)
    stage = rwr_stage(LEARNING, config, old, arrays)
    run = jax.jit(stage.loss_fn)
    total, weight, sums = run(weights, data, jax.random.key(0), stage.frozen)
    policy, reference = (np.asarray(candidate_logs(p, data, arrays)) for p in (weights, old))
    implicit = 0.3 * (policy - reference)[0]
    others = [0, 2, 3, 4]
    gaps = np.maximum(data["rewards"][0, 1], 1.0) - data["rewards"][0, others]
    excess = (gaps**-1.5 + 1) * (implicit[others] - implicit[1])
    term = np.log1p(np.exp(excess).sum())
    np.testing.assert_allclose(total, 3 * (term - 0.7 * policy[0, 1]), rtol=1e-4)
    assert weight == 3 and sums["margin/count"] == 4
