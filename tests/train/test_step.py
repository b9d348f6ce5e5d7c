"""One update: equal on any mesh and for any number of microbatches, and never non-finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train import step as steps
from onesug_jax.train import train_state
from onesug_jax.train.hlo import Program
from onesug_jax.train.mesh import global_batch, make_mesh
from onesug_jax.train.optimizer import make_optimizer

# For float32 sums in another order; the differences were below 1e-6 over these few updates.
TOLERANCE = 1e-5


def run(stage, mesh, batch_at, updates=4, accumulation=1, name="adamw", seed=3):
    """(final state, metrics of every update)."""
    optimizer = make_optimizer(name, 0.02, 2, "rsqrt", weight_decay=0.01)
    like = train_state.abstract_state(stage, optimizer, mesh)
    update = steps.make_train_step(stage, optimizer, mesh, accumulation, seed)
    state, rows = train_state.init_state(stage, optimizer, mesh, seed), []
    for t in range(updates):
        state, metrics = update(state, global_batch(mesh, batch_at(t)), stage.frozen)
        rows.append({key: float(x) for key, x in metrics.items()})
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(spec.sharding, leaf.ndim)
    return state, rows


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize(("shape", "copies"), [((1, 1, 1), 1), ((2, 2, 1), 1), ((2, 2, 1), 2)])
def test_microbatches_add_up_to_the_large_batch(toy, mesh_of, shape, copies):
    """With one sum over devices per microbatch, or one in all."""
    stage, mesh = toy.make_stage(rows_add_up=copies > 1), mesh_of(*shape)
    batch_at = toy.make_batch_at()
    whole, metrics_whole = run(stage, mesh, batch_at)
    parts, metrics_parts = run(stage, mesh, batch_at, accumulation=4)
    assert_close(whole, parts)
    assert_close(metrics_whole, metrics_parts)
    assert metrics_whole[-1]["loss"] < metrics_whole[0]["loss"]


@pytest.mark.long
@pytest.mark.parametrize("accumulation", [1, 2])
def test_several_slices_equal_one_device(toy, mesh_of, accumulation):
    stage, batch_at = toy.make_stage(rows_add_up=True), toy.make_batch_at()
    one, metrics_one = run(stage, mesh_of(1), batch_at)
    slices = make_mesh(replica=2, data=2, fsdp=2)
    many, metrics_many = run(stage, slices, batch_at, accumulation=accumulation)
    assert_close(one, many)
    assert_close(metrics_one, metrics_many)


def reduced_bytes(toy, mesh, accumulation):
    """Bytes of gradients that the compiled update sums over devices."""
    stage, optimizer = toy.make_stage(rows_add_up=True), make_optimizer("adamw", 0.02)
    like = train_state.abstract_state(stage, optimizer, mesh)
    update = steps.make_train_step(stage, optimizer, mesh, accumulation)
    batch = jax.eval_shape(lambda: toy.make_batch_at(64)(0))
    text = update.lower(like, batch, None).compile().as_text()
    collectives = Program.parse(text).collectives()
    kinds = ("all-reduce", "reduce-scatter")
    return sum(c.bytes * c.times for c in collectives if c.kind in kinds and c.bytes > 64)


@pytest.mark.long
def test_microbatches_are_summed_over_devices_once(toy, mesh_of):
    mesh = mesh_of(4, 1, 1)
    assert 0 < reduced_bytes(toy, mesh, 8) <= reduced_bytes(toy, mesh, 1)


@pytest.mark.long
def test_each_copy_has_its_own_key(toy, mesh_of):
    """Dropout of rows on different copies is independent, and depends on seed and step."""
    base = toy.make_stage()

    def loss_fn(params, batch, key):
        total, weight, _ = base.loss_fn(params, batch, key)
        draw = jax.random.uniform(key)
        return total, weight, {"draw": draw * weight, "squared": draw**2 * weight}

    stage = train_state.Stage("toy", base.init_fn, loss_fn, rows_add_up=True)
    _, rows = run(stage, mesh_of(4), toy.make_batch_at(), updates=2, accumulation=2)
    for metrics in rows:
        assert metrics["squared"] - metrics["draw"] ** 2 > 1e-3  # eight draws, not one
    assert rows == run(stage, mesh_of(4), toy.make_batch_at(), updates=2, accumulation=2)[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "shapes"),
    [("adamw", [(8, 1, 1), (1, 8, 1), (2, 2, 2)]), ("adafactor", [(2, 2, 2)])],
)
def test_meshes_equal_one_device(toy, mesh_of, name, shapes):
    stage, batch_at = toy.make_stage(dropout=0.2), toy.make_batch_at()
    one, metrics_one = run(stage, mesh_of(1), batch_at, name=name)
    for shape in shapes:
        many, metrics_many = run(stage, mesh_of(*shape), batch_at, name=name)
        assert_close(one, many)
        assert_close(metrics_one, metrics_many)


@pytest.mark.long
def test_metrics_are_per_unit_of_weight(toy, mesh_of):
    stage, batch_at = toy.make_stage(), toy.make_batch_at()
    optimizer = make_optimizer("adamw", 0.02, 2, "rsqrt")
    state = train_state.init_state(stage, optimizer, mesh_of(1), 3)
    key = jax.random.key(0)
    total, weight, sums = jax.jit(stage.loss_fn)(state.params, batch_at(0), key)
    of_mean = jax.jit(jax.grad(lambda p: stage.loss_fn(p, batch_at(0), key)[0] / weight))
    grads = of_mean(state.params)
    _, (rows, later) = run(stage, mesh_of(1), batch_at, updates=2)
    squares = sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads))
    assert rows["loss"] == pytest.approx(float(total / weight), rel=1e-5)
    assert rows["accuracy"] == pytest.approx(float(sums["accuracy"] / weight), rel=1e-5)
    assert rows["weight"] == pytest.approx(float(weight), rel=1e-5)
    assert rows["grad_norm"] == pytest.approx(squares**0.5, rel=1e-5)
    assert (rows["learning_rate"], later["learning_rate"]) == pytest.approx((0.01, 0.02))


@pytest.mark.long
def test_randomness_depends_on_seed_and_step(toy, mesh_of):
    stage, batch_at = toy.make_stage(dropout=0.5), toy.make_batch_at()
    assert run(stage, mesh_of(1), batch_at)[1] == run(stage, mesh_of(1), batch_at)[1]
    keys = []
    watcher = toy.make_stage()
    watching = train_state.Stage(
        "watch",
        watcher.init_fn,
        lambda params, batch, key: (
            0.0 * params["Dense_0"]["bias"].sum(),
            1.0,
            {"draw": jax.random.uniform(key)},
        ),
    )
    for seed in (3, 4):
        _, rows = run(watching, mesh_of(1), batch_at, seed=seed)
        keys += [metrics["draw"] for metrics in rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.long
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_non_finite_update_is_recorded_and_not_applied(toy, mesh_of, accumulation):
    mesh = mesh_of(2, 2, 2)
    good, _ = run(toy.make_stage(), mesh, toy.make_batch_at(), updates=2)
    bad, rows = run(
        toy.make_stage(), mesh, toy.make_batch_at(poison=2), updates=5, accumulation=accumulation
    )
    assert (int(good.bad_step), int(bad.bad_step), int(bad.step)) == (-1, 2, 2)
    assert np.isnan(rows[2]["loss"])
    # Later updates are not applied either: the state is that before batch 2.
    assert_close(good.replace(bad_step=bad.bad_step), bad)


def test_a_batch_without_weight_has_no_gradient(toy, mesh_of):
    def batch_at(step):
        batch = toy.make_batch_at()(step)
        return {**batch, "weight": np.zeros_like(batch["weight"])}

    state, rows = run(toy.make_stage(), mesh_of(1), batch_at, updates=1)
    assert (rows[0]["loss"], rows[0]["grad_norm"]) == (0, 0)
    assert (int(state.step), int(state.bad_step)) == (1, -1)


def test_frozen_arrays_reach_the_loss_and_after_update_sets_params(toy, mesh_of):
    base = toy.make_stage()

    def loss_fn(params, batch, key, frozen):
        total, weight, _ = base.loss_fn(params, batch, key)
        counts = jnp.zeros(toy.VOCAB).at[batch["target"]].add(1.0)
        return total, weight, {"reference": frozen["scale"] * weight, "counts": counts}

    def after_update(params, sums, key):
        bias = sums["counts"]
        return {**params, "Dense_1": {**params["Dense_1"], "bias": bias}}

    frozen = {"scale": jnp.float32(2.5)}
    stage = train_state.Stage(
        "toy", base.init_fn, loss_fn, frozen=frozen, after_update=after_update
    )
    batch_at = toy.make_batch_at()
    state, rows = run(stage, mesh_of(2), batch_at, updates=2, accumulation=2)
    assert rows[0]["reference"] == pytest.approx(2.5)
    assert "counts" not in rows[0]
    counts = np.bincount(batch_at(1)["target"], minlength=toy.VOCAB)
    np.testing.assert_array_equal(state.params["Dense_1"]["bias"], counts)


def test_refuses_a_batch_that_does_not_divide(toy, mesh_of):
    with pytest.raises(UserError, match=r"batch: 16.*accumulation=4.*multiple of 32"):
        run(toy.make_stage(), mesh_of(8), toy.make_batch_at(16), accumulation=4)
    with pytest.raises(UserError, match="share their first dimension"):
        steps.batch_size({"a": np.zeros((2, 3)), "b": np.zeros(3)})
