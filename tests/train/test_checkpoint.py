"""What was saved comes back, on any mesh; what is damaged is named and passed over."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train import step as steps
from onesug_jax.train.checkpoint import Checkpoints, load_params, saved_steps
from onesug_jax.train.mesh import global_batch, replicated
from onesug_jax.train.optimizer import make_optimizer


def setting(toy, mesh, name="adamw"):
    """(state after two updates, its abstract form, the update)."""
    stage, optimizer = toy.make_stage(), make_optimizer(name, 0.02)
    like = steps.abstract_state(stage, optimizer, mesh)
    update = steps.make_train_step(stage, optimizer, mesh, steps.shardings_of(like))
    state = steps.init_state(stage, optimizer, mesh, 0)
    for t in range(2):
        state, _ = update(state, global_batch(mesh, toy.make_batch_at()(t)), None)
    return state, like, update


def host_copy(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_state_moves_between_meshes(toy, mesh_of, tmp_path, name):
    state, _, _ = setting(toy, mesh_of(2, 2, 2), name)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state, {"best": {"step": 1}})
    for shape in [(1, 1, 1), (1, 4, 1), (2, 1, 4)]:
        like = steps.abstract_state(toy.make_stage(), make_optimizer(name, 0.02), mesh_of(*shape))
        with Checkpoints(tmp_path) as checkpoints:
            restored, notes = checkpoints.restore(like)
        assert notes == {"best": {"step": 1}}
        assert toy.same_bits(state, restored)
        for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_updates_go_on_while_the_state_is_written(toy, mesh_of, tmp_path, shape):
    mesh = mesh_of(*shape)
    state, like, update = setting(toy, mesh)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        seen = {}
        for t in range(2, 5):
            seen[t] = host_copy(state)
            checkpoints.save(t, state)
            for _ in range(3):  # these give the saved arrays' memory away
                state, _ = update(state, global_batch(mesh, toy.make_batch_at()(t)), None)
        checkpoints.wait()
        for t, expected in sorted(seen.items(), reverse=True):
            restored, _ = checkpoints.restore(like)
            assert toy.same_bits(expected, restored)
            os.rename(tmp_path / "checkpoints" / str(t), tmp_path / f"looked at {t}")


def test_the_newest_are_kept_and_one_best(toy, mesh_of, tmp_path):
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


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, pathlib.Path.unlink])
@pytest.mark.parametrize("part", ["params", "rest"])
def test_a_damaged_newest_is_named_and_the_one_before_used(
    toy, mesh_of, tmp_path, capsys, harm, part
):
    state, like, update = setting(toy, mesh_of(1))
    expected = host_copy(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
        state, _ = update(state, global_batch(mesh_of(1), toy.make_batch_at()(2)), None)
        checkpoints.save(3, state)
    victim = largest_file(tmp_path / "checkpoints" / "3" / part)
    harm(victim)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(like)
        assert toy.same_bits(expected, restored)
        checkpoints.save(3, restored)  # its name is free again
    said = capsys.readouterr().out
    assert f"{tmp_path}/checkpoints/3 is damaged" in said
    assert victim.name in said and "step 2" in said
    assert saved_steps(tmp_path) == [2, 3]


def test_when_none_is_intact_nothing_starts_over_silently(toy, mesh_of, tmp_path):
    state, like, _ = setting(toy, mesh_of(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
    truncate(largest_file(tmp_path / "checkpoints" / "2" / "rest"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no intact"):
        checkpoints.restore(like)


def test_damage_is_found_without_the_digests_too(toy, mesh_of, tmp_path):
    state, like, _ = setting(toy, mesh_of(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
        checkpoints.save(3, state)
    home = tmp_path / "checkpoints" / "3"
    (home / "digests.json").unlink()
    truncate(home / "rest" / "manifest.ocdbt")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like) is not None
    assert saved_steps(tmp_path) == [2]


def test_another_configuration_does_not_go_on_silently(toy, mesh_of, tmp_path, capsys):
    state, like, _ = setting(toy, mesh_of(1))
    old = {"learning_rate": 0.1, "model": {"layers": 2, "width": 8}}
    new = {"learning_rate": 0.1, "model": {"layers": 3, "width": 8}}
    with Checkpoints(tmp_path, fingerprint=old) as checkpoints:
        checkpoints.save(2, state)
        checkpoints.save_best(2, state.params, {})
    with Checkpoints(tmp_path, fingerprint=new) as checkpoints:
        with pytest.raises(UserError, match=r"configuration: model.layers 2 \(now 3\)\."):
            checkpoints.restore(like)
        assert saved_steps(tmp_path) == [2]
        assert checkpoints.restore(like, on_mismatch="restart") is None
    assert "model.layers 2 (now 3)" in capsys.readouterr().out
    assert saved_steps(tmp_path) == [] and not (tmp_path / "best").exists()


def test_a_state_of_another_shape_is_refused_by_name(toy, mesh_of, tmp_path):
    state, _, _ = setting(toy, mesh_of(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state)
    adafactor = steps.abstract_state(
        toy.make_stage(), make_optimizer("adafactor", 0.02), mesh_of(1)
    )
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="rest: does not fit"):
        checkpoints.restore(adafactor)
    assert saved_steps(tmp_path) == [2]


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
    laid_out = load_params(tmp_path, steps.shardings_of(like.params))
    assert laid_out["Dense_0"]["kernel"].sharding == like.params["Dense_0"]["kernel"].sharding
    assert toy.same_bits(laid_out, first)
    everywhere = load_params(tmp_path, replicated(mesh))
    assert everywhere["Dense_0"]["kernel"].sharding.is_fully_replicated
    truncate(largest_file(tmp_path / "best" / "2" / "params"))
    with pytest.raises(UserError, match="no intact parameters.*best/2"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="no parameters found"):
        load_params(tmp_path / "elsewhere")


def test_loading_parameters_loads_no_tensorflow():
    code = (
        "import sys, onesug_jax.train.checkpoint\n"
        "print([m for m in ('tensorflow', 'tensorboard', 'seqio') if m in sys.modules])"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
