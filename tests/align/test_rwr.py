"""The preference stage: scores, objective, stored reference, metrics, and convergence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onesug_jax.align import losses
from onesug_jax.align.rwr import (
    PreferenceConfig,
    list_scores,
    log_probabilities,
    make_measure,
    rwr_stage,
    stored_reference,
)
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import Level
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train.mesh import global_batch, make_mesh, unbox
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import init_state
from tests.tiny_model import tiny_config

CONFIG = tiny_config(64, encoder_layers=2, decoder_layers=2, soft_dim=3, soft_id=40)
LEVELS = [Level.ORDER, Level.SHOW, Level.NOT_SHOW, Level.RAND]


@functools.cache
def params_of(seed=0):
    return unbox(jax.jit(rwr_stage(CONFIG, PreferenceConfig()).init_fn)(jax.random.key(seed)))


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 40, (rows, 9)).astype(np.int32)
    tokens[:, 6:] *= rng.integers(0, 2, (rows, 1)).astype(np.int32)
    tokens[:, 1] = 40
    targets = rng.integers(2, 40, (rows, 4, 5)).astype(np.int32)
    lengths = rng.integers(1, 6, (rows, 4, 1))
    targets = np.where(np.arange(5) < lengths, targets, 0)
    targets[0, 3] = 0  # a list with one negative less
    targets[rows - 1] = 0  # a row of padding
    return {
        "encoder_input_tokens": tokens,
        "encoder_soft": rng.normal(size=(rows, 1, 3)).astype(np.float32),
        "list_targets": targets,
        "rewards": np.tile(np.array([2.0, 0.5, 0.2, 0.0], np.float32), (rows, 1)),
        "levels": np.tile(np.array(LEVELS, np.int32), (rows, 1)),
    }


@jax.jit
def repeated(params, data):
    """Log-probabilities with the request repeated for every target."""
    rows, targets, length = data["list_targets"].shape
    flat = data["list_targets"].reshape(rows * targets, length)
    tokens = jnp.repeat(data["encoder_input_tokens"], targets, 0)
    soft = jnp.repeat(data["encoder_soft"], targets, 0)
    shifted = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
    logits = Seq2Seq(CONFIG).apply({"params": params}, tokens, shifted, soft=soft)
    logs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logs, flat[..., None], axis=-1)[..., 0]
    return jnp.sum(chosen * (flat > 0), axis=1).reshape(rows, targets)


@jax.jit
def scored(params, data):
    return log_probabilities(list_scores(Seq2Seq(CONFIG), params, data), data["list_targets"])


@pytest.mark.long
def test_encoding_once_gives_the_scores_and_gradients_of_repeated_requests():
    params, data = params_of(), batch()
    np.testing.assert_allclose(scored(params, data), repeated(params, data), atol=1e-5)
    once, plain = (
        jax.jit(jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p, data)))))(params)
        for f in (scored, repeated)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), once, plain)


@pytest.mark.long
def test_the_objective_is_the_preference_term_and_alpha_times_sft():
    data, config = batch(), PreferenceConfig(loss="rwr_hinge", beta=0.3, alpha=0.7)
    params, reference = params_of(0), params_of(1)
    loss_fn = jax.jit(rwr_stage(CONFIG, config, reference).loss_fn)
    total, weight, sums = loss_fn(params, data, jax.random.key(0), reference)
    policy, old = repeated(params, data), repeated(reference, data)
    mask = data["list_targets"][:, :, 0] > 0
    term = losses.rwr_hinge(0.3 * (policy - old), data["rewards"], mask, 0.5)
    generation = -policy[:7, 0]  # the last row is padding
    np.testing.assert_allclose(total, term[:7].sum() + 0.7 * generation.sum(), rtol=1e-5)
    assert weight == 7
    np.testing.assert_allclose(sums["sft"], generation.sum(), rtol=1e-5)
    lead = 0.3 * (policy - old)
    lead = (lead[:, :1] - lead[:, 1:])[mask[:, 1:] & mask[:, :1]]
    np.testing.assert_allclose(sums["margin"], lead.sum(), rtol=1e-4, atol=1e-5)
    assert sums["margin/count"] == lead.size == 7 * 3 - 1
    np.testing.assert_allclose(sums["accuracy"], (lead > 0).sum())
    shown = "accuracy/order_show"
    assert sums[f"{shown}/count"] == 7 and sums["accuracy/click_show/count"] == 0
    parts = [sums[f"accuracy/order_{name}"] for name in ("show", "not_show", "rand")]
    np.testing.assert_allclose(sum(parts), sums["accuracy"])


def trained(mesh, stage, data, steps=3, at=None):
    optimizer = optax.adam(3e-3)
    step = make_train_step(stage, optimizer, mesh)
    state = init_state(stage, optimizer, mesh, seed=0)
    for i in range(steps):
        now = data if at is None else at(i)
        state, metrics = step(state, global_batch(mesh, dict(now)), stage.frozen)
    return jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.long
@pytest.mark.eight_devices
def test_eight_devices_train_as_one():
    data = batch()
    alone = make_mesh(devices=jax.devices()[:1])
    many = make_mesh(data=2, fsdp=2, tensor=2)
    frozen = params_of(1)
    one, metrics = trained(alone, rwr_stage(CONFIG, PreferenceConfig(), frozen), data)
    eight, others = trained(many, rwr_stage(CONFIG, PreferenceConfig(), frozen), data)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-4)
    # Adam divides by tiny second moments, which amplifies rounding errors.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, eight)


@pytest.mark.long
def test_stored_log_probabilities_train_like_the_frozen_copy(tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    frozen, seen = params_of(1), []

    def at(step):
        seen.append(step)
        return batch(seed=step)

    path = str(tmp_path / "reference.npz")
    with_reference = stored_reference(path, CONFIG, frozen, at, 3, mesh, "one")
    copied, _ = trained(mesh, rwr_stage(CONFIG, PreferenceConfig(), frozen), None, at=at)
    stored, _ = trained(mesh, rwr_stage(CONFIG, PreferenceConfig()), None, at=with_reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), copied, stored)
    seen.clear()
    stored_reference(path, CONFIG, frozen, at, 3, mesh, "one")
    assert not seen  # read back
    stored_reference(path, CONFIG, frozen, at, 3, mesh, "another")
    assert seen == [0, 1, 2]  # computed again


@pytest.mark.long
def test_training_makes_the_positive_lead():
    mesh = make_mesh(devices=jax.devices()[:1])
    data, frozen = batch(), params_of(0)
    config = PreferenceConfig(beta=0.5, delta=0.5, alpha=0.0)
    _, before = trained(mesh, rwr_stage(CONFIG, config, frozen), data, steps=1)
    _, after = trained(mesh, rwr_stage(CONFIG, config, frozen), data, steps=60)
    assert before["margin"] == pytest.approx(0, abs=1e-5)
    lead = after["margin"] / after["margin/count"]
    assert lead > 0.5 and after["accuracy"] == after["accuracy/count"]


@pytest.mark.long
def test_the_reference_has_no_divergence_and_no_margin():
    mesh = make_mesh(devices=jax.devices()[:1])
    measure = make_measure(CONFIG, PreferenceConfig(), mesh)
    params = params_of()
    same = measure(params, params, [batch(), batch(seed=1)])
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["margin"] == 0
    assert "accuracy/click_show" not in same  # there is no such pair
    moved = measure(params_of(1), params, [batch()])
    assert moved["kl"] > 0.01


@pytest.mark.long
def test_kl_is_the_divergence_of_the_next_token_along_the_positives():
    data, params, reference = batch(rows=2), params_of(0), params_of(1)
    mesh = make_mesh(devices=jax.devices()[:1])
    kl = make_measure(CONFIG, PreferenceConfig(), mesh)(params, reference, [data])["kl"]
    total, tokens = 0.0, 0

    @jax.jit
    def next_token(params, row, shifted):
        inputs, soft = (data[name][row][None] for name in ("encoder_input_tokens", "encoder_soft"))
        return jax.nn.softmax(Seq2Seq(CONFIG).apply({"params": params}, inputs, shifted, soft=soft))

    data = jax.tree.map(jnp.asarray, data)
    for row in range(2):
        target = np.asarray(data["list_targets"][row, 0])
        shifted = np.pad(target, (1, 0))[None, :-1]
        p, q = (np.asarray(next_token(x, row, shifted)[0], float) for x in (params, reference))
        for t in np.flatnonzero(target):
            total += float(np.sum(p[t] * np.log(p[t] / q[t])))
            tokens += 1
    assert kl == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.long
def test_only_the_policy_has_dropout():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    params, data = params_of(), batch()
    stage = rwr_stage(config, PreferenceConfig(alpha=0.0), params)
    loss_fn = jax.jit(stage.loss_fn)
    margins = {float(loss_fn(params, data, jax.random.key(i), params)[2]["margin"]) for i in (0, 1)}
    assert len(margins) == 2 and 0.0 not in margins


@pytest.mark.parametrize(
    "wrong", [{"loss": "rwr"}, {"beta": 0.0}, {"alpha": -1.0}, {"loss": "sft", "alpha": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="PreferenceConfig"):
        PreferenceConfig(**wrong)
