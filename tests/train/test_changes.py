"""Settings may change between runs: training resumes from the checkpoint and reports changes."""

import jax
import numpy as np
import optax
import pytest

from onesug_jax.train.checkpoint import Checkpoints, load_params, saved_steps
from onesug_jax.train.history import read_history
from onesug_jax.train.loop import Preempted
from onesug_jax.train.optimizer import make_optimizer
from onesug_jax.train.train_state import abstract_state


def initial_params_and_result(train, folder, **changed):
    """The parameters that a run begins with, and its result."""
    seen = {}

    def evaluate(params, step):
        seen.setdefault(step, jax.tree.map(np.array, params))
        return {"value": float(step)}

    result = train(folder, evaluate_every=4, evaluate_fn=evaluate, **changed)
    return seen[min(seen)], result


def adam(rate=0.02, steps=40, **more):
    return make_optimizer("adamw", rate, 3, "cosine", steps, **more)


CHANGES = {
    "steps": ({"steps": 9}, {"steps": [4, 9]}),
    "batch_size": ({"batch_size": 32}, {"batch_size": [16, 32]}),
    "rate": ({"optimizer": adam(0.01)}, {"learning_rate": [0.02, 0.01]}),
    "schedule": (
        {"optimizer": make_optimizer("adamw", 0.02, 2, "linear", 40)},
        {"warmup_steps": [3, 2], "decay": ["cosine", "linear"]},
    ),
    "no clipping": ({"optimizer": adam(clip_norm=None)}, {"clip_norm": [1.0, None]}),
    "decay": ({"optimizer": adam(weight_decay=0.1)}, {"weight_decay": [0.0, 0.1]}),
    "accumulation": ({"accumulation": 2}, {"accumulation": [1, 2]}),
    "mesh": (
        {"mesh": (2, 2, 2)},
        {"mesh.data": [1, 2], "mesh.fsdp": [1, 2], "mesh.tensor": [1, 2]},
    ),
    "seed": ({"seed": 8}, {"seed": [7, 8]}),
    "of the caller": ({"settings": {"version": 2}}, {"version": [1, 2]}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_with_a_changed_setting_resumes_with_the_same_parameters(
    train, toy, rows, tmp_path, capsys, name
):
    changed, recorded = CHANGES[name]
    first = train(tmp_path, **{"steps": 4, "settings": {"version": 1}})
    if "batch_size" in changed:
        changed = {**changed, "batch_at": toy.make_batch_at(size=32)}
    # The second run begins with the evaluation at step 4.
    settings = {"steps": 8, "settings": {"version": 1}} | changed
    initial, result = initial_params_and_result(train, tmp_path, **settings)
    assert toy.same_bits(initial, first.params)
    assert result.step == settings["steps"]
    assert not toy.same_bits(result.params, first.params)
    recorded = {"steps": [4, 8], "evaluate_every": [0, 4]} | recorded
    entry = read_history(tmp_path)[-1]
    assert (entry["step"], entry["changes"]) == (4, recorded)
    lines = capsys.readouterr().out.splitlines()
    (printed,) = [line for line in lines if line.startswith("toy: from step 4 on: ")]
    for setting, (_, new) in recorded.items():
        assert setting in printed and str(new or "none") in printed, printed
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == [2, 4, 6, 8, 9][: len(steps)] and steps[-1] == result.step


@pytest.mark.long
def test_optimizer_state_is_restored_under_other_settings(train, toy, tmp_path):
    """The next update shows that moments and counts are those of the checkpoint."""
    train(tmp_path / "a", steps=4)
    train(tmp_path / "b", steps=4)
    one = train(tmp_path / "a", steps=5)
    # This decay and this limit change the parts of the chain, but no number.
    other = train(tmp_path / "b", steps=5, optimizer=adam(weight_decay=1e-30, clip_norm=1e30))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_another_optimizer_has_a_new_state_and_the_history_records_it(
    train, toy, mesh_of, tmp_path, capsys, mesh
):
    first = train(tmp_path, steps=4)
    other = make_optimizer("adafactor", 0.02, 3, "cosine", 40)
    settings = {"steps": 8, "optimizer": other, "mesh": mesh}
    initial, result = initial_params_and_result(train, tmp_path, **settings)
    assert toy.same_bits(initial, first.params) and result.step == 8
    out = capsys.readouterr().out
    assert "optimizer adamw -> adafactor" in out
    assert out.count("the optimizer state is new") == 1
    entry = read_history(tmp_path)[-1]
    assert entry["changes"]["optimizer"] == ["adamw", "adafactor"]
    assert "the optimizer state is new" in entry["note"]
    # Its schedule counts all updates, its statistics begin at step 4.
    like = abstract_state(toy.make_stage(), other, mesh_of(*mesh))
    with Checkpoints(tmp_path, identity={"stage": "toy", "model": "toy"}) as checkpoints:
        state = checkpoints.restore(like).state
    counts = {
        kind: [int(x.count) for x in jax.tree.leaves(state.opt_state, is_leaf=kind) if kind(x)]
        for kind in (is_schedule, is_statistics)
    }
    assert counts == {is_schedule: [8], is_statistics: [4]}
    again = train(tmp_path, steps=12, optimizer=other, mesh=mesh)
    assert again.step == 12 and len(read_history(tmp_path)) == 3
    assert "note" not in read_history(tmp_path)[-1]


def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)


def is_statistics(node):
    return isinstance(node, optax.FactoredState)


@pytest.mark.long
def test_more_steps_equal_one_long_run_and_fewer_do_nothing(train, toy, rows, tmp_path, capsys):
    whole = train(tmp_path / "whole", steps=12)
    for steps in (6, 9, 12):
        result = train(tmp_path / "raised", steps=steps)
    assert toy.same_bits(result.params, whole.params)
    assert [row["step"] for row in rows(tmp_path / "raised")] == [2, 4, 6, 8, 9, 10, 12]
    steps = [entry["changes"]["steps"] for entry in read_history(tmp_path / "raised")]
    assert steps == [[None, 6], [6, 9], [9, 12]]
    before = toy.contents(tmp_path / "raised")
    fewer = train(tmp_path / "raised", steps=5, optimizer=adam(0.5), batch_at=None)
    assert fewer.step == 12 and toy.same_bits(fewer.params, whole.params)
    assert "12 of 5 steps are already done" in capsys.readouterr().out
    assert toy.contents(tmp_path / "raised") == before


@pytest.mark.long
def test_a_best_that_is_newer_than_the_checkpoint_counts(train, toy, tmp_path):
    """A run was killed after it saved a best, and resumes from an older checkpoint."""
    scores = {2: 0.3, 4: 0.2, 6: 0.9, 8: 0.1}

    class Killed(Exception):
        pass

    def batch_at(step):
        if step == 7:
            while not list((tmp_path / "best" / "6").glob("digests.json")):
                pass
            raise Killed
        return toy.make_batch_at()(step)

    settings = {"evaluate_every": 2, "best_metric": "mrr", "steps": 8}
    settings["evaluate_fn"] = lambda params, step: {"mrr": scores[step]}
    with pytest.raises(Killed):
        train(tmp_path, batch_at=batch_at, **settings)
    assert saved_steps(tmp_path) == [4]
    best = load_params(tmp_path)
    scores[6] = 0.5
    result = train(tmp_path, optimizer=adam(0.001), **settings)
    assert (result.best_step, result.best_value) == (6, 0.9)
    assert toy.same_bits(load_params(tmp_path), best)
    again = train(
        tmp_path,
        optimizer=adam(0.001),
        **{**settings, "best_metric": "hr", "steps": 10}
        | {"evaluate_fn": lambda params, step: {"hr": 0.01}},
    )
    assert (again.best_step, again.best_value) == (10, 0.01), "another metric is another best"


@pytest.mark.long
def test_a_best_without_any_checkpoint_is_removed_and_nothing_else(train, toy, tmp_path):
    train(
        tmp_path / "first",
        steps=4,
        evaluate_every=2,
        best_metric="a",
        evaluate_fn=lambda params, step: {"a": 1.0},
    )
    folder = tmp_path / "first"
    (folder / "checkpoints" / "4").rename(folder / "moved")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "note").write_text("of the user")
    with pytest.raises(Exception, match="Dense_0"):
        train(folder, params_from={"too": np.zeros(3)})
    assert (folder / "best").exists()
    train(folder, steps=2, checkpoint_every=10)
    assert not (folder / "best").exists()
    assert (folder / "damaged" / "note").exists() and (folder / "moved").exists()


@pytest.mark.long
def test_patience_that_ended_a_run_may_be_raised(train, toy, tmp_path, capsys):
    settings = {
        "evaluate_every": 2,
        "evaluate_fn": lambda params, step: {"mrr": 1.0 / step},
        "best_metric": "mrr",
        "patience": 1,
    }
    first = train(tmp_path, **settings)
    assert (first.step, first.best_step) == (4, 2)
    assert train(tmp_path, **settings).step == 4
    assert "patience=1 ended training there" in capsys.readouterr().out
    assert train(tmp_path, **{**settings, "patience": 2}).step == 6
    assert read_history(tmp_path)[-1]["changes"] == {"patience": [1, 2]}
    # Without evaluations patience has no effect.
    settings |= {"evaluate_every": 0, "best_metric": None}
    assert train(tmp_path, **settings).step == 12


@pytest.mark.long
def test_changes_of_runs_without_a_checkpoint_are_not_recorded(train, tmp_path):
    train(tmp_path, steps=4)

    def batch_at(step):
        raise Preempted(15, step)

    for rate in (0.5, 0.4):
        with pytest.raises(Preempted):
            train(tmp_path, optimizer=adam(rate), batch_at=batch_at)
    train(tmp_path)
    assert [entry["changes"] for entry in read_history(tmp_path)][1:] == [{"steps": [4, 12]}]
