"""The training loop: resumes with the same bits, saves the best, stops at a non-finite loss."""

import os
import signal
import time
import types

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train.checkpoint import load_params, saved_steps
from onesug_jax.train.inflight import InFlight
from onesug_jax.train.interruption import Interruption
from onesug_jax.train.loop import Preempted
from onesug_jax.train.nonfinite import NonFiniteLoss
from onesug_jax.train.optimizer import make_optimizer
from onesug_jax.train.states import States


def stop_at(monkeypatch, *steps):
    """Simulates SIGTERM during these updates."""
    signum = lambda self, step: signal.SIGTERM if step in steps else 0  # noqa: E731
    monkeypatch.setattr(Interruption, "stop_signal", signum)


@pytest.mark.long
def test_a_run_in_pieces_equals_a_run_in_one(losses, train, toy, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 3, 5)
        for step in (3, 5):
            with pytest.raises(Preempted) as stopped:
                train(tmp_path / "pieces")
            assert (stopped.value.code, stopped.value.step) == (143, step)
            assert saved_steps(tmp_path / "pieces")[-1] == step
    pieces = train(tmp_path / "pieces")
    assert (whole.step, pieces.step) == (12, 12)
    assert toy.same_bits(whole.params, pieces.params)
    assert losses(tmp_path / "whole") == losses(tmp_path / "pieces")
    assert list(losses(tmp_path / "pieces")) == [2, 4, 6, 8, 10, 12]
    assert saved_steps(tmp_path / "pieces") == [8, 12]


@pytest.mark.long
def test_another_machine_resumes_from_states_in_a_bucket(losses, train, toy, tmp_path, monkeypatch):
    """Reports are pushed before each checkpoint, so that the resumed run has all their lines."""
    metrics, pushed = "metrics.jsonl", []

    def on(machine):
        push = lambda: pushed.append((tmp_path / machine / metrics).read_bytes())  # noqa: E731
        return {"states": States(f"file://{tmp_path}/bucket", push=push)}

    whole = train(tmp_path / "whole")
    stop_at(monkeypatch, 6)
    with pytest.raises(Preempted):
        train(tmp_path / "first", **on("first"))
    assert not (tmp_path / "first" / "checkpoints").exists()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / metrics).write_bytes(pushed[-1])
    stop_at(monkeypatch)
    pieces = train(tmp_path / "second", **on("second"))
    assert toy.same_bits(whole.params, pieces.params)
    assert losses(tmp_path / "whole") == losses(tmp_path / "second")
    assert saved_steps(tmp_path / "bucket") == [8, 12]


@pytest.mark.long
def test_batches_come_in_order_once_each(rows, train, toy, tmp_path, monkeypatch):
    requested = []
    real = toy.make_batch_at()
    stage = toy.make_stage()

    def batch_at(step):
        requested.append(step)
        return {**real(step), "number": np.full(16, step, np.int32)}

    def loss_fn(params, batch, key):
        total, weight, _ = stage.loss_fn(params, batch, key)
        return total, weight, {"number": batch["number"][0] * weight}

    watched = toy.make_stage().__class__("toy", stage.init_fn, loss_fn)
    settings = {"stage": watched, "batch_at": batch_at, "log_every": 1}
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Preempted):
            train(tmp_path, **settings)
    requested.clear()
    train(tmp_path, **settings)
    assert requested == list(range(5, 12))
    assert [round(row["number"]) for row in rows(tmp_path)] == list(range(12))


@pytest.mark.long
def test_resuming_on_another_mesh_gives_the_same_losses(losses, train, tmp_path):
    train(tmp_path / "one", steps=12)
    train(tmp_path / "moved", steps=6, checkpoint_every=6)
    train(tmp_path / "moved", steps=12, mesh=(2, 2, 2))
    one, moved = losses(tmp_path / "one"), losses(tmp_path / "moved")
    assert one.keys() == moved.keys()
    np.testing.assert_allclose(list(one.values()), list(moved.values()), rtol=1e-5)


@pytest.mark.long
def test_sigterm_saves_first_and_the_handlers_are_restored(train, toy, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    real = toy.make_batch_at()

    def batch_at(step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(step)

    with pytest.raises(Preempted) as stopped:
        train(tmp_path, steps=1000, batch_at=batch_at, checkpoint_every=1000)
    assert stopped.value.code == 143
    assert saved_steps(tmp_path) == [stopped.value.step]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_shapes_of_each_compilation_are_printed(train, tmp_path, capsys):
    train(tmp_path, steps=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "compiling" in line]
    assert lines == ["toy: compiling for batches of target [16], tokens [16, 4], weight [16]"]


def test_a_batch_with_a_nan_stops_the_run_and_is_saved(losses, train, toy, tmp_path):
    poisoned = toy.make_batch_at(poison=6)
    good = train(tmp_path / "good", steps=4)
    with pytest.raises(NonFiniteLoss, match=r"update 7 \(batch 6\)") as stopped:
        train(tmp_path / "bad", steps=1000, batch_at=poisoned, log_every=5)
    assert saved_steps(tmp_path / "bad") == [4]
    assert toy.same_bits(load_params(tmp_path / "bad"), good.params)
    path = tmp_path / "bad" / "nonfinite_batch_6.npz"
    assert str(path) in str(stopped.value)
    with np.load(path) as stored:
        assert stored.keys() == poisoned(6).keys()
        for name, values in poisoned(6).items():
            np.testing.assert_array_equal(stored[name], values)
    assert max(losses(tmp_path / "bad"), default=0) < 7


SCORES = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.5}


def test_the_best_by_the_dev_metric_is_saved(rows, train, toy, tmp_path):
    seen, best = {}, 6

    def evaluate(params, step):
        seen[step] = {"kernel": np.array(params["Dense_0"]["kernel"])}
        return {"mrr": SCORES[step], "other": 1.0}

    result = train(tmp_path, evaluate_every=3, evaluate_fn=evaluate, best_metric="mrr")
    assert (result.best_step, result.best_value) == (best, SCORES[best])
    stored = load_params(tmp_path)
    assert np.array_equal(stored["Dense_0"]["kernel"], seen[best]["kernel"])
    assert [(row["step"], row["mrr"]) for row in rows(tmp_path, "evaluate")] == list(SCORES.items())
    again = train(tmp_path, evaluate_every=3, evaluate_fn=None, best_metric=None)
    assert (again.best_step, again.best_value) == (best, SCORES[best])


@pytest.mark.long
@pytest.mark.parametrize("stopped", [6, 7, 9, 12])
def test_the_best_survives_a_stop(rows, train, tmp_path, monkeypatch, stopped):
    evaluated = []

    def evaluate(params, step):
        evaluated.append(step)
        return {"mrr": SCORES[step]}

    settings = {"evaluate_every": 3, "evaluate_fn": evaluate, "best_metric": "mrr"}
    with monkeypatch.context() as patch:
        stop_at(patch, stopped)
        with pytest.raises(Preempted):
            train(tmp_path, **settings)
    result = train(tmp_path, **settings)
    assert (result.best_step, result.best_value) == (6, 0.9)
    # The run stops without its evaluation; the next run makes it. None is made twice.
    assert evaluated == [3, 6, 9, 12]
    assert [row["step"] for row in rows(tmp_path, "evaluate")] == [3, 6, 9, 12]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["6"]


def test_batches_of_several_lengths(losses, train, toy, tmp_path):
    lengths = [toy.make_batch_at(16, 4), toy.make_batch_at(8, 12)]
    result = train(tmp_path, batch_at=lambda step: lengths[step % 2](step))
    assert result.step == 12
    assert all(np.isfinite(loss) for loss in losses(tmp_path).values())


@pytest.mark.long
def test_parameters_from_another_stage(train, toy, tmp_path):
    params = train(tmp_path / "first", mesh=(2, 2, 2)).params
    rate = make_optimizer("adamw", 1e-30, 0, "none")
    for source in (tmp_path / "first", params, lambda: params):
        folder = tmp_path / f"second {type(source).__name__}"
        moved = train(folder, steps=1, params_from=source, optimizer=rate)
        assert toy.same_bits(moved.params, params)
    short = {**params, "Dense_0": {"kernel": np.zeros((3, 3), np.float32), "bias": np.zeros(3)}}
    with pytest.raises(UserError, match=r"Dense_0/bias: expected shape \[32\], found \[3\]"):
        train(tmp_path / "third", params_from=short)
    with pytest.raises(UserError, match="it has no Dense_1/bias.*Embed_0/embedding"):
        train(tmp_path / "third", params_from={"Dense_0": params["Dense_0"]})


def test_a_trace_of_the_remaining_selected_steps(rows, train, tmp_path):
    train(tmp_path, steps=4)
    train(tmp_path, steps=8, profile_steps=(3, 6))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert rows(tmp_path)[-1]["share/profile"] > 0


@pytest.mark.long
@pytest.mark.parametrize("busy", [True, False])
def test_waiting_for_data_counts_if_the_devices_are_idle(
    rows, train, toy, tmp_path, busy, monkeypatch
):
    def batch_at(step):
        time.sleep(0.1)  # much longer than an update, on a loaded machine too
        return toy.make_batch_at()(step)

    monkeypatch.setattr(InFlight, "busy", lambda self: busy)
    train(tmp_path, steps=20, batch_at=batch_at, log_every=20, checkpoint_every=100)
    last = rows(tmp_path)[-1]
    larger, smaller = ("goodput", "share/data") if busy else ("share/data", "goodput")
    assert last[larger] > last[smaller]


def test_devices_are_busy_until_the_last_dispatched_update_is_done():
    done, running = ({"loss": types.SimpleNamespace(is_ready=lambda x=x: x)} for x in (1, 0))
    updates = InFlight("toy", None, None, None)
    assert not updates.busy()
    updates._running.extend([running, done])
    assert not updates.busy()
    updates._running.append(running)
    assert updates.busy()


def test_a_missing_metric_and_a_data_error_stop_the_run(train, toy, tmp_path):
    with pytest.raises(UserError, match="best_metric='mrr': the evaluation gives hr, loss"):
        train(
            tmp_path / "a",
            evaluate_every=1,
            evaluate_fn=lambda params, step: {"loss": 1.0, "hr": 0.1},
            best_metric="mrr",
        )

    def batch_at(step):
        if step == 3:
            raise UserError("shard 3 is missing")
        return toy.make_batch_at()(step)

    with pytest.raises(UserError, match="shard 3 is missing"):
        train(tmp_path / "b", batch_at=batch_at)
