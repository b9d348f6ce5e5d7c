"""The pretrain stage: sums over microbatches, equal results on every mesh, and convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onesug_jax.align.pretrain import pretrain_stage
from onesug_jax.train.mesh import global_batch, make_mesh, unbox
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import init_state
from tests.tiny_model import tiny_config

CONFIG = tiny_config(128)


def batch(rows, seed=0):
    """The target is the first two tokens of the input."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(2, 12, (rows, 6)).astype(np.int32)
    targets = np.concatenate([inputs[:, :2], np.ones((rows, 1), np.int32)], axis=1)
    targets = np.pad(targets, ((0, 0), (0, 1)))
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


@pytest.mark.long
def test_sums_add_up_over_microbatches():
    """Loss, weight and accuracy of a batch are those of its halves, added."""
    stage = pretrain_stage(CONFIG)
    params = unbox(stage.init_fn(jax.random.key(0)))
    loss = jax.jit(stage.loss_fn)
    data = batch(8)
    halves = [{k: v[i : i + 4] for k, v in data.items()} for i in (0, 4)]
    expected = loss(params, data, jax.random.key(1))
    parts = [loss(params, half, jax.random.key(1)) for half in halves]
    added = jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), expected, added)


@pytest.mark.long
def test_learns_to_copy():
    """300 updates of the real step reduce the loss from chance to almost 0."""
    stage = pretrain_stage(CONFIG)
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = optax.adam(1e-2)
    step = make_train_step(stage, optimizer, mesh)
    state = init_state(stage, optimizer, mesh, seed=0)
    first = None
    for i in range(300):
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch(32, seed=i)), None)
        first = float(metrics["loss"]) if first is None else first
    assert first > 3.0
    assert float(metrics["loss"]) < 0.3
    assert float(metrics["accuracy"]) > 0.95


def test_tokens_are_counted_without_padding():
    stage = pretrain_stage(CONFIG)
    assert stage.tokens_fn(batch(5)) == 5 * (6 + 3)


@pytest.mark.long
@pytest.mark.eight_devices
@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_meshes_train_as_one_device(shape):
    """Losses of three updates, and the parameters after them, to 1e-4."""
    stage = pretrain_stage(CONFIG)
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam would amplify rounding errors
    results = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(**shape)):
        step = make_train_step(stage, optimizer, mesh)
        state = init_state(stage, optimizer, mesh, seed=0)
        losses = []
        for i in range(3):
            state, metrics = step(state, global_batch(mesh, batch(16, i)), stage.frozen)
            losses.append(float(metrics["loss"]))
        results.append((losses, jax.device_get(state.params)))
    (one, params), (many, others) = results
    np.testing.assert_allclose(one, many, rtol=1e-4)
    assert one[0] > one[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, others)
