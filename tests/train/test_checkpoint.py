"""Checkpoints are restored on any mesh; damaged ones are reported and skipped."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train import checkpoint, train_state
from onesug_jax.train import step as steps
from onesug_jax.train.checkpoint import Checkpoints, load_params, saved_steps
from onesug_jax.train.mesh import global_batch, replicated
from onesug_jax.train.optimizer import make_optimizer


def setting(toy, mesh, name="adamw"):
    """(state after two updates, its abstract form, the update)."""
    stage, optimizer = toy.make_stage(), make_optimizer(name, 0.02)
    like = train_state.abstract_state(stage, optimizer, mesh)
    update = steps.make_train_step(stage, optimizer, mesh)
    state = train_state.init_state(stage, optimizer, mesh, 0)
    for t in range(2):
        state, _ = update(state, global_batch(mesh, toy.make_batch_at()(t)), None)
    return state, like, update


def saved(toy, mesh, folder):
    """Saves a state as step 2; its abstract form."""
    state, like, _ = setting(toy, mesh)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state)
    return like


def host_copy(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.long
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_state_moves_between_meshes(toy, mesh_of, tmp_path, name):
    state, _, _ = setting(toy, mesh_of(2, 2, 2), name)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state, {"best": {"step": 1}})
    for shape in [(1, 1, 1), (1, 4, 1), (2, 1, 4)]:
        like = train_state.abstract_state(
            toy.make_stage(), make_optimizer(name, 0.02), mesh_of(*shape)
        )
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore(like)
        assert (restored.step, restored.notes) == (2, {"best": {"step": 1}})
        assert toy.same_bits(state, restored.state)
        for leaf, spec in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(spec.sharding, leaf.ndim)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_updates_go_on_while_the_state_is_written(toy, mesh_of, tmp_path, shape):
    mesh = mesh_of(*shape)
    state, like, update = setting(toy, mesh)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        seen = {}
        for t in range(2, 11, 3):
            seen[t] = host_copy(state)
            checkpoints.save(t, state)
            for _ in range(3):  # these donate the saved arrays
                state, _ = update(state, global_batch(mesh, toy.make_batch_at()(t)), None)
        checkpoints.wait()
        for t, expected in sorted(seen.items(), reverse=True):
            assert toy.same_bits(expected, checkpoints.restore(like).state)
            os.rename(tmp_path / "checkpoints" / str(t), tmp_path / f"compared {t}")


def test_the_newest_and_one_best_are_retained(toy, mesh_of, tmp_path):
    state, _, _ = setting(toy, mesh_of(1))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(step, state)
        for step in (10, 30):
            checkpoints.save_best(step, state.params, {})
    assert saved_steps(tmp_path) == [30, 40]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["30"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.long
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, pathlib.Path.unlink])
@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    toy, mesh_of, tmp_path, capsys, damage, part
):
    state, like, update = setting(toy, mesh_of(1))
    expected = host_copy(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
        state, _ = update(state, global_batch(mesh_of(1), toy.make_batch_at()(2)), None)
        checkpoints.save(3, state)
    victim = largest_file(tmp_path / "checkpoints" / "3" / part)
    damage(victim)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like).state
        assert toy.same_bits(expected, restored)
        checkpoints.save(3, restored)  # its name is free again
    out = capsys.readouterr().out
    assert f"{tmp_path}/checkpoints/3 is damaged" in out
    assert victim.name in out and "step 2" in out
    assert saved_steps(tmp_path) == [2, 3]


def test_without_an_intact_checkpoint_training_does_not_start_over(toy, mesh_of, tmp_path):
    like = saved(toy, mesh_of(1), tmp_path)
    truncate(largest_file(tmp_path / "checkpoints" / "2" / "optimizer"))
    before = toy.contents(tmp_path)
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no intact"):
            checkpoints.restore(like)
        assert toy.contents(tmp_path) == before


def test_damage_is_found_even_without_the_digests(toy, mesh_of, tmp_path):
    state, like, _ = setting(toy, mesh_of(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
        checkpoints.save(3, state)
    home = tmp_path / "checkpoints" / "3"
    (home / "digests.json").unlink()
    truncate(home / "optimizer" / "manifest.ocdbt")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like) is not None
    assert saved_steps(tmp_path) == [2]


def test_another_identity_is_refused_and_changes_nothing(toy, mesh_of, tmp_path):
    state, like, _ = setting(toy, mesh_of(1))
    old = {"stage": "pretrain", "model": {"layers": 2, "width": 8}, "vocabulary": "abc"}
    new = {"stage": "pretrain", "model": {"layers": 3, "width": 8}, "vocabulary": "abd"}
    with Checkpoints(tmp_path, identity=old) as checkpoints:
        checkpoints.save(2, state)
        checkpoints.save(3, state)
        checkpoints.save_best(2, state.params, {})
    truncate(largest_file(tmp_path / "checkpoints" / "3" / "params"))
    before = toy.contents(tmp_path)
    for identity, words in (
        (new, ["model.layers 2 (now 3), vocabulary 'abc' (now 'abd')", "--restart=pretrain"]),
        ({}, ["vocabulary 'abc' (now None)", "another folder (WORK_DIR)"]),
    ):
        with Checkpoints(tmp_path, identity=identity) as checkpoints:
            with pytest.raises(UserError) as error:
                checkpoints.restore(like)
        assert all(word in str(error.value) for word in words), error.value
        assert toy.contents(tmp_path) == before
    with Checkpoints(tmp_path, identity=old) as checkpoints:
        assert checkpoints.restore(like).step == 2


def test_another_format_is_refused_and_changes_nothing(toy, mesh_of, tmp_path, monkeypatch):
    like = saved(toy, mesh_of(1), tmp_path)
    before = toy.contents(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="format 3, found 2"):
        checkpoints.restore(like)
    assert toy.contents(tmp_path) == before


def test_parameters_of_another_shape_are_refused_by_name(toy, mesh_of, tmp_path):
    like = saved(toy, mesh_of(1), tmp_path)
    before = toy.contents(tmp_path)
    wide = jax.ShapeDtypeStruct((64,), np.float32, sharding=like.step.sharding)
    dense = {**like.params["Dense_0"], "bias": wide}
    for params, words in (
        ({**like.params, "Dense_0": dense}, r"Dense_0/bias: expected shape \[64\], found \[32\]"),
        ({**like.params, "Dense_9": dense}, "it has no Dense_9/bias"),
    ):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=words):
            checkpoints.restore(like.replace(params=params))
        assert toy.contents(tmp_path) == before


def test_an_optimizer_without_arrays_is_stored(toy, mesh_of, tmp_path):
    plain, stage = optax.sgd(0.1), toy.make_stage()
    like = train_state.abstract_state(stage, plain, mesh_of(1))
    assert not jax.tree.leaves(like.opt_state)
    state = train_state.init_state(stage, plain, mesh_of(1), 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state.replace(step=state.step + 2))
        checkpoints.wait()
        restored = checkpoints.restore(like)
    assert toy.same_bits(restored.state.params, state.params) and restored.step == 2


def test_load_params_finds_the_best_or_the_newest(toy, mesh_of, tmp_path):
    mesh = mesh_of(2, 2, 2)
    state, like, update = setting(toy, mesh)
    first = host_copy(state.params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(2, state.params, {})
        state, _ = update(state, global_batch(mesh, toy.make_batch_at()(2)), None)
        checkpoints.save(3, state)
    best, newest = load_params(tmp_path), load_params(tmp_path / "checkpoints")
    assert isinstance(jax.tree.leaves(best)[0], np.ndarray)
    assert toy.same_bits(best, first) and toy.same_bits(newest, state.params)
    assert toy.same_bits(load_params(tmp_path / "checkpoints" / "3"), newest)
    sharded = load_params(tmp_path, train_state.shardings_of(like.params))
    assert sharded["Dense_0"]["kernel"].sharding == like.params["Dense_0"]["kernel"].sharding
    assert toy.same_bits(sharded, first)
    copies = load_params(tmp_path, replicated(mesh))
    assert copies["Dense_0"]["kernel"].sharding.is_fully_replicated
    truncate(largest_file(tmp_path / "best" / "2" / "params"))
    with pytest.raises(UserError, match="no intact parameters.*best/2"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="no parameters found"):
        load_params(tmp_path / "elsewhere")


@pytest.mark.long
def test_loading_parameters_loads_no_tensorflow():
    code = (
        "import sys, onesug_jax.train.checkpoint\n"
        "print([m for m in ('tensorflow', 'tensorboard', 'seqio') if m in sys.modules])"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
