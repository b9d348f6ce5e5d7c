"""The contrastive loss against its definition, and on one device against several."""

import math

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.text_encoder.bert import EncoderConfig
from onesug_jax.text_encoder.contrastive import contrastive_stage, false_negatives, info_nce
from onesug_jax.train import step as steps
from onesug_jax.train import train_state
from onesug_jax.train.mesh import global_batch, make_mesh
from onesug_jax.train.optimizer import make_optimizer

CONFIG = EncoderConfig(
    vocab_size=32,
    d_model=16,
    layers=1,
    heads=2,
    d_ff=16,
    max_positions=8,
    max_length=8,
    dropout=0.0,
)
# The order of float32 sums differs; the measured difference is below 1e-5.
TOLERANCE = 5e-5


def slow(anchors, others, anchor_ids, other_ids, temperature):
    """The loss pair by pair; negatives are chosen by comparing texts."""
    losses, hits = [], []
    n = len(anchors)
    for i in range(n):
        pair = {anchor_ids[i], other_ids[i]}
        negatives = [
            j
            for j in range(n)
            if anchor_ids[j] != anchor_ids[i]
            and other_ids[j] != other_ids[i]
            and not {anchor_ids[j], other_ids[j]} & pair
        ]
        own = anchors[i] @ others[i] / temperature
        forward = [anchors[i] @ others[j] / temperature for j in negatives]
        backward = [anchors[j] @ others[i] / temperature for j in negatives]
        sums = (sum(math.exp(s - own) for s in (own, *way)) for way in (forward, backward))
        losses.append(sum(map(math.log, sums)) / 2)
        hits.append(float(own >= max([own, *forward])))
    return np.array(losses), np.array(hits)


def unit(rng, n, d=6):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_losses_are_those_of_the_definition(temperature):
    rng = np.random.default_rng(0)
    anchors, others = unit(rng, 20), unit(rng, 20)
    ids = rng.integers(0, 12, (20, 2))  # many texts appear more than once, on either side
    losses, hits = info_nce(
        anchors.astype(np.float32), others.astype(np.float32), ids[:, 0], ids[:, 1], temperature
    )
    slow_losses, slow_hits = slow(anchors, others, ids[:, 0], ids[:, 1], temperature)
    np.testing.assert_allclose(losses, slow_losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(hits, slow_hits)
    assert 0 < slow_hits.sum() < 20


def test_false_negatives_share_a_text():
    # Pairs 0 and 1 share the other text, 0 and 2 the anchor; 3's anchor is the other of 0 and 1.
    ids = np.array([[1, 5], [2, 5], [1, 6], [5, 7], [3, 8]])
    found = np.asarray(false_negatives(ids[:, 0], ids[:, 1]))
    expected = {(0, 1), (0, 2), (0, 3), (1, 3)}
    assert {(i, j) for i, j in zip(*np.nonzero(found), strict=True) if i < j} == expected
    np.testing.assert_array_equal(found, found.T)


def batch_at(step, size=16):
    rng = np.random.default_rng([7, step])
    return {
        "tokens": rng.integers(1, 32, (size, 2, 6), dtype=np.int32),
        "lengths": rng.integers(2, 7, (size, 2), dtype=np.int32),
        "texts": rng.integers(0, 40, (size, 2), dtype=np.int32),
    }


def run(shape, updates=3, accumulation=1):
    """(parameters, metrics of each update) on a mesh of that shape."""
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    stage, optimizer = contrastive_stage(CONFIG, 0.1), make_optimizer("adamw", 0.01, 0, "none")
    update = steps.make_train_step(stage, optimizer, mesh, accumulation, seed=1)
    state, losses = train_state.init_state(stage, optimizer, mesh, seed=1), []
    for t in range(updates):
        state, metrics = update(state, global_batch(mesh, batch_at(t)), None)
        losses.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state.params), losses


@pytest.fixture(scope="module")
def on_one_device():
    return run((1, 1, 1))


@pytest.mark.long
@pytest.mark.eight_devices
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_use_the_negatives_of_the_whole_batch(on_one_device, shape):
    params, losses = run(shape)
    for mine, theirs in zip(losses, on_one_device[1], strict=True):
        assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    # Adam divides by the gradient's size, which enlarges the rounding of gradients near zero.
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(on_one_device[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.long
def test_negatives_come_from_the_microbatch():
    _, losses = run((1, 1, 1), updates=1, accumulation=2)
    stage, key = contrastive_stage(CONFIG, 0.1), jax.random.key(0)
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer("adamw", 0.01, 0, "none")
    params = train_state.init_state(stage, optimizer, mesh, seed=1).params
    loss = jax.jit(lambda batch: stage.loss_fn(params, batch, key)[0])
    halves = [{name: x[part::2] for name, x in batch_at(0).items()} for part in (0, 1)]
    total = sum(float(loss(half)) for half in halves)
    assert losses[0]["loss"] == pytest.approx(total / 16, rel=1e-4)
    whole = float(loss(batch_at(0)))
    assert abs(whole - total) / 16 > 0.1


@pytest.mark.long
def test_metrics_are_sums_over_pairs():
    stage = contrastive_stage(CONFIG, 0.1)
    params = jax.jit(stage.init_fn)(jax.random.key(1))
    params = jax.tree.map(np.asarray, steps.meshes.unbox(params))
    batch = batch_at(0)
    batch["tokens"][:, 1], batch["lengths"][:, 1] = batch["tokens"][:, 0], batch["lengths"][:, 0]
    _, weight, sums = jax.jit(stage.loss_fn)(params, batch, jax.random.key(0))
    assert float(weight) == 16
    assert float(sums["cosine"]) == pytest.approx(16, rel=1e-5)
    assert stage.tokens_fn(batch) == batch["lengths"].sum()


def test_a_temperature_must_be_positive():
    with pytest.raises(UserError, match="temperature=0"):
        contrastive_stage(CONFIG, 0.0)
