"""Reports of a run: rates, files that survive a kill, TensorBoard without TensorFlow."""

import io
import json
import pathlib
import subprocess
import sys
import types

import pytest

from onesug_jax.train.clock import Clock
from onesug_jax.train.report import Report


class Time:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def report(folder, time=None, **changed):
    settings = {"name": "toy", "steps": 100, "stream": io.StringIO(), **changed}
    return Report(folder, clock=Clock(time or Time()), **settings)


def test_rates_exclude_phases_other_than_training(tmp_path):
    time = Time()
    # 8 examples of 30 FLOPs in 2 s on two devices of 100 FLOP/s each: utilisation 0.6.
    with report(tmp_path, time, flops_per_example=30, peak_flops=100, devices=2) as log:
        with log.clock.measure_phase("compile"):
            time.now += 50
        time.now += 1.5
        with log.clock.measure_phase("data"):
            time.now += 0.5
        with log.clock.measure_phase("evaluate"):
            time.now += 8
        log.progress(10, {"loss": 1.0}, examples=8, tokens=80)
        time.now += 4
        log.progress(20, {"loss": 0.5}, examples=24, tokens=400)
    first, second = rows(tmp_path)
    assert (first["examples_per_s"], first["tokens_per_s"]) == (4, 40)
    assert first["mfu"] == pytest.approx(0.6)
    assert first["goodput"] == pytest.approx(1.5 / 60)
    assert (second["examples_per_s"], second["tokens_per_s"]) == (4, 80)


def test_goodput_and_the_shares_of_the_phases(tmp_path):
    time, stream = Time(), io.StringIO()
    with report(tmp_path, time, stream=stream) as log:
        log.progress(5, {"loss": 1.0}, examples=0)
        for phase, seconds in (("compile", 20), ("data", 4), ("save", 1), ("profile", 5)):
            with log.clock.measure_phase(phase):
                time.now += seconds
        time.now += 70
        log.progress(10, {"loss": 1.0}, examples=8)
    last = rows(tmp_path)[-1]
    shares = {name: value for name, value in last.items() if name.startswith("share/")}
    assert shares == {
        "share/data": 0.04,
        "share/compile": 0.2,
        "share/evaluate": 0.0,
        "share/save": 0.01,
        "share/profile": 0.05,
    }
    assert last["goodput"] == pytest.approx(0.7) == 1 - sum(shares.values())
    assert last["examples_per_s"] == pytest.approx(8 / 74), "writing a trace is no training"
    assert "goodput 70%" in stream.getvalue().splitlines()[-1]


def test_the_progress_line(tmp_path):
    time, stream = Time(), io.StringIO()
    with report(tmp_path, time, stream=stream) as log:
        time.now += 10
        log.progress(10, {"loss": 1.25, "grad_norm": 9.0, "accuracy": 0.5}, 5000, 80_000)
    line = stream.getvalue()
    assert line == (
        "toy  10/100  loss 1.2500  accuracy 0.5  500 examples/s  8,000 tokens/s  "
        "goodput 100%  left 1m30s\n"
    )


def test_a_terminal_line_is_overwritten(tmp_path):
    time, stream = Time(), Terminal()
    with report(tmp_path, time, stream=stream) as log:
        for step in (10, 20):
            time.now += 10
            log.progress(step, {"loss": 1.0}, step)
        log.evaluated(20, {"mrr": 0.5}, best=True)
    first, second, third = stream.getvalue().split("\r")
    assert first.startswith("toy  10/100") and second.startswith("toy  20/100")
    assert "\n" not in first + second
    assert third.rstrip() == "toy 20: evaluate  mrr 0.5  (best so far)"


def test_a_resumed_run_drops_later_lines_of_a_killed_run(tmp_path):
    with report(tmp_path) as log:
        for step in (10, 20, 30):
            log.progress(step, {"loss": float(step)}, step)
            log.evaluated(step, {"mrr": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "ki')  # killed while writing
    with report(tmp_path, start=20) as log:
        log.progress(30, {"loss": 33.0, "other": float("nan")}, 10)
    assert [(row["step"], row["kind"], row.get("loss")) for row in rows(tmp_path)] == [
        (10, "train", 10.0),
        (10, "evaluate", None),
        (20, "train", 20.0),
        (20, "evaluate", None),
        (30, "train", 33.0),
    ]
    assert rows(tmp_path)[-1]["other"] is None


def test_tensorboard_reads_the_events_without_tensorflow(tmp_path, monkeypatch):
    code = """
import sys
from onesug_jax.train.report import Report
for start, steps in ((0, (10, 20, 30)), (20, (30, 40))):
    with Report(sys.argv[1], name="toy", steps=100, start=start) as log:
        for step in steps:
            log.progress(step, {"loss": step + start / 100}, step)
        log.evaluated(steps[-1], {"mrr": 0.25, "lists": {"la -> lamp": ["lava", "lamp"]}})
print("tensorflow" in sys.modules)
"""
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "False", out.stderr
    # With this module, TensorBoard's reader uses its own replacement of TensorFlow.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (10, 10),
        (20, 20),
        (30, pytest.approx(30.2)),
        (40, pytest.approx(40.2)),
    ]
    assert [(e.step, e.value) for e in events.Scalars("evaluate/mrr")] == [(40, 0.25)]
    *_, text = events.Tensors("evaluate/lists")
    assert text.step == 40 and text.tensor_proto.string_val == [b"**la -> lamp**: lava, lamp"]
    assert rows(tmp_path)[-1]["lists"] == {"la -> lamp": ["lava", "lamp"]}
    for share in ("goodput", "share/data", "share/compile", "share/evaluate", "share/save"):
        assert [e.step for e in events.Scalars(f"train/{share}")] == [10, 20, 30, 40]
