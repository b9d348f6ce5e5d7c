"""Killed processes leave complete checkpoints, and a resumed run gives the same bits."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from onesug_jax.train.checkpoint import load_params, saved_steps

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40

SCRIPT = """
import os, resource, signal, sys, time

folder, full_from = sys.argv[1:]

from onesug_jax.errors import UserError
from onesug_jax.train.loop import fit
from onesug_jax.train.mesh import make_mesh
from onesug_jax.train.optimizer import make_optimizer
from tests.train import toy

real = toy.make_batch_at()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def batch_at(step):
    time.sleep(0.02)
    if step == int(full_from):  # a full disk, for one process: no file may grow beyond this
        while not os.path.exists(os.path.join(folder, "checkpoints", "4", "digests.json")):
            time.sleep(0.02)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return real(step)

try:
    fit(
        toy.make_stage(dropout=0.1), batch_at=batch_at, batch_size=16, mesh=make_mesh(),
        identity={"model": "toy"},
        optimizer=make_optimizer("adamw", 0.02, 5, "cosine", 100), steps=STEPS, seed=3,
        folder=folder, log_every=1, checkpoint_every=4, evaluate_every=10, best_metric="bias",
        evaluate_fn=lambda params, step: {"bias": float(abs(params["Dense_1"]["bias"]).sum())},
    )
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script on a folder; kills it at the end of the test."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("STEPS", str(STEPS)))
    running = []

    def start(folder, full_from=-1):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(full_from)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def logged(folder):
    """Steps of the complete lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.mark.long
def test_killed_runs_go_on_with_the_same_bits(start, toy, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    straight = start(whole)

    process = start(pieces)  # killed while it writes a checkpoint in the background
    wait_for(
        process,
        lambda: logged(pieces)[-1:] >= [10] and any(pieces.glob("checkpoints/*tmp*")),
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert saved_steps(pieces) and logged(pieces)[-1] < STEPS

    process = start(pieces)  # SIGTERM: saves first
    wait_for(process, lambda: logged(pieces)[-1:] >= [23])
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert f"saved step {saved_steps(pieces)[-1]};" in out
    assert saved_steps(pieces)[-1] == logged(pieces)[-1] >= 23

    assert "resuming from step" in finish(start(pieces))
    finish(straight)
    assert logged(pieces) == logged(whole) == list(range(1, STEPS + 1))
    for part in ("checkpoints", "best"):
        assert toy.same_bits(load_params(pieces / part), load_params(whole / part))


@pytest.mark.long
def test_a_full_disk_is_reported_and_leaves_complete_checkpoints(start, toy, tmp_path):
    process = start(tmp_path / "full", full_from=9)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2, out
    saved = saved_steps(tmp_path / "full")
    # The checkpoint writer's threads may add traces of their own, before or after our message.
    line = next(x for x in out.splitlines() if "could not be written" in x)
    assert "Make room" in line
    # The checkpoint or metrics.jsonl may reach the limit first.
    assert f"Complete checkpoints: {saved}" in line or "checkpoints are complete" in line
    assert 0 < saved[-1] < STEPS
    for step in saved:
        load_params(tmp_path / "full" / "checkpoints" / str(step))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_ends_at_random_moments_leave_the_same_bits(start, toy, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    finish(start(whole))
    draw, ends = random.Random(0), 0
    while ends < 20:
        process = start(pieces)
        # Somewhere between the start of the interpreter and a few dozen updates.
        time.sleep(draw.uniform(0.5, 9.0))
        if process.poll() is not None:
            finish(process)
            shutil.rmtree(pieces)  # the run finished: the next one starts over
            continue
        signum = draw.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(signum)
        out, _ = process.communicate(timeout=300)
        # SIGTERM before Python installs its handler ends the process at once.
        assert process.returncode in (-signum, 128 + signum, 0), out
        ends += 1
    finish(start(pieces))
    assert logged(pieces) == logged(whole)
    for part in ("checkpoints", "best"):
        assert toy.same_bits(load_params(pieces / part), load_params(whole / part))
