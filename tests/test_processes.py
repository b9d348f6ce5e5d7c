"""Several processes on one WORK_DIR: they train together, with the results of one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from onesug_jax.train.checkpoint import load_params, saved_steps
from tests.test_pipeline import SMALL

RUN = ["run", *SMALL, "--gin.simulate.requests=5000", "--gin.BATCH_SIZE=16"]


def start(project_root, words, count=1, devices=1, own=lambda index: {}):
    """Starts the command in `count` processes with `devices` devices each; `own` adds variables."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("ONESUG_")}
    outside["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=500"
    )
    processes = []
    for index in range(count):
        joined = {
            "ONESUG_PROCESSES": str(count),
            "ONESUG_PROCESS": str(index),
            "ONESUG_COORDINATOR": f"127.0.0.1:{port}",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "onesug_jax.main", *words],
                cwd=project_root,
                env={**outside, **(joined if count > 1 else {}), **own(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes):
    """The output of each process; all must succeed."""
    printed = [process.communicate() for process in processes]
    for process, (out, err) in zip(processes, printed, strict=True):
        assert process.returncode == 0, f"{out[-2000:]}\n{err[-4000:]}"
    return [out for out, _ in printed]


@pytest.fixture(scope="module")
def works(tmp_path_factory, project_root):
    """WORK_DIRs of one process with two devices and of two with one each; the output of the two."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    alone = start(project_root, [*RUN, f"--gin.WORK_DIR={one}"], devices=2)
    finish(alone)
    said = finish(start(project_root, [*RUN, f"--gin.WORK_DIR={two}"], count=2))
    return one, two, said


def rows(path, kind):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.slow
def test_only_process_0_prints(works):
    _, _, said = works
    assert said[0].count("] running") == 12
    assert said[0].count("] done in") == 12
    lines = said[1].splitlines()
    assert all(line.startswith("[Gloo]") for line in lines), "Gloo prints from C++"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encoder", "pretrain", "rwr"])
def test_trainings_are_equal(works, stage):
    one, two, _ = works
    losses = [
        [row["loss"] for row in rows(work / stage / "metrics.jsonl", "train")]
        for work in (one, two)
    ]
    assert losses[0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    if stage != "encoder":
        a, b = (load_params(work / stage / "checkpoints") for work in (one, two))
        for (_, x), (_, y) in zip(flat(a), flat(b), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)


def flat(tree):
    import jax

    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.slow
def test_lists_are_distributed_and_complete(works):
    import pyarrow.parquet as pq

    one, two, _ = works
    a, b = (pq.read_table(work / "report" / "dev" / "lists.parquet") for work in (one, two))
    assert a.num_rows == b.num_rows > 256
    assert a["truth"].equals(b["truth"])
    same = [x == y for x, y in zip(*(t["list_model"].to_pylist() for t in (a, b)), strict=True)]
    assert np.mean(same) > 0.9  # parameters differ in the last bits, and so may the order of ties


@pytest.mark.slow
def test_stages_of_one_process_are_refused_for_several(works, project_root):
    _, two, _ = works
    words = ["suggest", f"--gin.WORK_DIR={two}", "--prefix", "a"]
    for process in start(project_root, words, count=2):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "suggest is run by one process, found 2: unset ONESUG_PROCESSES" in err


@pytest.mark.long
def test_an_error_of_process_0_ends_all(project_root, tmp_path):
    words = ["run", f"--gin.WORK_DIR={tmp_path / 'work'}", f"--gin.LOG={tmp_path / 'nowhere'}"]
    printed = [p.communicate(timeout=120)[1] for p in start(project_root, words, count=2)]
    assert all("nowhere" in err for err in printed), printed
    assert "process 0 stopped" in printed[1]


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_run_can_continue(works, project_root, tmp_path):
    _, two, _ = works
    work = tmp_path / "lost"
    shutil.copytree(two, work)
    shutil.rmtree(work / "pretrain")
    new = work / "pretrain.new"
    words = [
        "pretrain",
        *RUN[1:],
        f"--gin.WORK_DIR={work}",
        "--gin.STEPS=4000",
        "--gin.pretrain.checkpoint_every=20",
        "--gin.pretrain.evaluate_every=0",
    ]
    first, second = start(project_root, words, count=2)
    until = time.monotonic() + 600
    while not (steps := saved_steps(new)) or steps[-1] < 40:
        assert first.poll() is None and time.monotonic() < until, first.communicate()
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, err = first.communicate(timeout=200)
    assert first.returncode != 0
    assert time.monotonic() - began < 150
    assert "another process of this run" in err, err[-3000:]
    reached = saved_steps(new)[-1]
    first, second = start(project_root, words, count=2)
    until = time.monotonic() + 600
    while saved_steps(new)[-1] < reached + 40:
        assert first.poll() is None and time.monotonic() < until, first.communicate()
        time.sleep(0.1)
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=300)
    second.communicate(timeout=300)
    assert "resuming from step" in out, err[-2000:]
    assert first.returncode == 128 + signal.SIGTERM
