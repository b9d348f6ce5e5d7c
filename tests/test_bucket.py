"""WORK_DIR in a bucket with the real stages: a small shop, lost machines, two processes with their
own disks. The bucket is a folder with a file:// URL.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx2 as httpx
import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import onesug_jax
from onesug_jax import main
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.mirror import Mirror
from onesug_jax.pipeline.store import Store
from onesug_jax.pipeline.workdir import FOLDERS
from onesug_jax.stages import pretrained
from onesug_jax.train.checkpoint import load_params, saved_steps
from tests.test_pipeline import SMALL
from tests.test_processes import finish, start


def upload(work, url):
    """Copies a finished local WORK_DIR into a bucket."""
    mirror = Mirror(url)
    reports = [f"report/{name}" for name in sorted(os.listdir(work / "report"))]
    for unit in (*FOLDERS, *reports):
        if not (work / unit / "_manifest.json").exists():
            continue
        place = os.path.join(mirror.home, unit)
        shutil.copytree(work / unit, place)
        mirror.publish(place, place)
        states = [name for name in ("best", "checkpoints") if (work / unit / name).exists()]
        for state in states:  # in a training, orbax writes them there
            at = tables.read(place).url.removeprefix("file://")
            shutil.copytree(work / unit / state, f"{at}/{state}")
    shutil.copy(work / "config.gin", mirror.home)
    mirror.push_loose()
    shutil.rmtree(mirror.home)


@pytest.fixture
def bucket(small_run, tmp_path, monkeypatch):
    """The URL of a finished WORK_DIR without local files."""
    monkeypatch.setenv(tables.MIRROR, str(tmp_path / "machine"))
    url = f"file://{tmp_path}/bucket/work"
    upload(small_run, url)
    return url


def lose_the_machine():
    shutil.rmtree(os.path.dirname(tables.root()), ignore_errors=True)


def test_an_empty_machine_finds_all_stages_up_to_date_and_suggests(bucket, small_run, capsys):
    assert main.main(["run", "--dry_run", f"--gin.WORK_DIR={bucket}"]) == 0
    plan = capsys.readouterr().out.split("# plan for")[1].splitlines()
    assert plan[0].strip() == bucket
    assert all("up to date" in line for line in plan[1:-1]), plan
    expected, found = (
        onesug_jax.Suggester.load(str(path)).suggest("c", k=5) for path in (small_run, bucket)
    )
    assert expected == found


def test_a_mistake_leaves_the_bucket_unchanged(bucket, capsys):
    before = Store(bucket).sizes()
    words = [f"--gin.WORK_DIR={bucket}", "--gin.vocab.pieces=400"]
    assert main.main(["run", *words]) == 2
    assert "was trained on something else" in capsys.readouterr().err
    assert Store(bucket).sizes() == before


def train(project_root, url, machine, *words):
    """The stage pretrain in a new process, on a machine with this name."""
    command = [sys.executable, "-m", "onesug_jax.main", "pretrain", f"--gin.WORK_DIR={url}", *words]
    environment = {**os.environ, tables.MIRROR: str(machine)}
    return subprocess.Popen(command, cwd=project_root, env=environment, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_a_training_continues_on_another_machine_with_the_same_bits(bucket, project_root, tmp_path):
    words = ["--gin.STEPS=60", "--gin.pretrain.checkpoint_every=5", "--gin.pretrain.log_every=5"]
    words += ["--gin.SEED=1", "--restart"]
    other = f"file://{tmp_path}/bucket/other"
    shutil.copytree(tmp_path / "bucket" / "work", tmp_path / "bucket" / "other")
    assert train(project_root, other, tmp_path / "whole", *words).wait() == 0

    first = train(project_root, bucket, tmp_path / "first", *words)
    until = time.monotonic() + 600
    while not (states := running(bucket)) or not (saved_steps(states) or [0])[-1] >= 20:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    shutil.rmtree(tmp_path / "first")
    second = train(project_root, bucket, tmp_path / "second", *words[:-1])
    said = second.communicate()[0].decode()
    assert second.returncode == 0 and "resuming from step" in said, said

    results = {}
    for url in (bucket, other):
        found = json.loads(Store(url).read(["_units/pretrain.json"])["_units/pretrain.json"])
        home = tmp_path / "bucket" / url.rpartition("/")[2] / "pretrain" / found["generation"]
        results[url] = load_params(home), rows(home / "metrics.jsonl")
    (a, losses), (b, expected) = results[bucket], results[other]
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert losses == expected and len(losses) == 12


def running(url):
    """The folder of the unfinished training's checkpoints; None: it has not started."""
    name = "_units/pretrain.new.json"
    content = Store(url).read([name]).get(name)
    if not content:
        return None
    return f"{url}/pretrain/{json.loads(content)['generation']}"


def rows(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [(row["step"], row["loss"]) for row in lines if row["kind"] == "train"]


@pytest.mark.slow
def test_a_run_in_a_bucket_by_two_processes_continues_after_one_is_killed(
    project_root, tmp_path, monkeypatch
):
    """Each process has its own disk; both disks are lost, and the run is repeated."""
    url = f"file://{tmp_path}/bucket/work"
    words = ["run", *SMALL, f"--gin.WORK_DIR={url}", "--gin.BATCH_SIZE=16"]
    words += ["--gin.pretrain.checkpoint_every=20", "--gin.pretrain.evaluate_every=0"]

    def both(*more):
        monkeypatch.setenv(tables.MIRROR, str(tmp_path / "disks" / "0"))
        return start(
            project_root,
            [*words, *more],
            count=2,
            own=lambda index: {tables.MIRROR: str(tmp_path / "disks" / str(index))},
        )

    first, second = both("--gin.STEPS=4000")
    until = time.monotonic() + 1500
    while not (states := running(url)) or not (saved_steps(states) or [0])[-1] >= 40:
        assert first.poll() is None and time.monotonic() < until, first.communicate()
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    first.communicate(timeout=200)
    assert first.returncode != 0
    shutil.rmtree(tmp_path / "disks")
    reached = saved_steps(states)[-1]
    said, _ = finish(both(f"--gin.STEPS={reached + 20}"))
    assert f"resuming from step {reached}" in said and "[evaluate] done" in said
    assert said.count("up to date, skipped") == 8
    lose_the_machine()
    model = onesug_jax.Suggester.load(url)
    assert model.suggest("c", k=3)


def test_parameters_in_a_bucket_are_those_of_its_best(bucket, small_run):
    folder = pretrained.parameters_from("pretrain.params_from", f"{bucket}/pretrain")
    assert tables.shown(folder) == f"{bucket}/pretrain"
    here, there = load_params(folder), load_params(small_run / "pretrain")
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_training_does_not_start_from_a_folder_of_a_bucket_that_no_stage_made(
    bucket, capsys, tmp_path
):
    (tmp_path / "bucket" / "t5").mkdir()
    (tmp_path / "bucket" / "t5" / "config.json").write_text("{}")
    for name in ("t5", "nothing"):
        words = [f"--gin.WORK_DIR={bucket}", f"--gin.PARAMS_FROM=file://{tmp_path}/bucket/{name}"]
        assert main.main(["pretrain", *words, "--restart"]) == 2
        assert "copy a T5 to this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_service_in_a_bucket_loads_a_version_that_another_machine_published(
    bucket, small_run, project_root, tmp_path, monkeypatch, capsys
):
    """`serve` on one machine, `update` on a second, rollback and `suggest` on empty ones."""
    dev = pq.read_table(small_run / "log" / "dev.parquet")
    for name, column in (
        ("request_id", pc.binary_join_element_wise(dev["request_id"], pa.scalar("fresh"), "-")),
        ("timestamp_ms", pc.add(dev["timestamp_ms"], pa.scalar(2 * 86_400_000))),
    ):
        dev = dev.set_column(dev.column_names.index(name), name, column)
    pq.write_table(dev, tmp_path / "bucket" / "fresh.parquet")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "onesug_jax.main", "serve", f"--gin.WORK_DIR={bucket}"]
    server = subprocess.Popen(
        [*command, f"--gin.ServerConfig.port={port}"],
        cwd=project_root,
        env={**os.environ, tables.MIRROR: str(tmp_path / "server"), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        read_until(server.stdout, "version 0000 is in use")
        flags = [f"--gin.WORK_DIR={bucket}", f"--gin.LOG=file://{tmp_path}/bucket/fresh.parquet"]
        flags += ["--gin.update.steps=4", "--gin.update.tolerance=100.0"]
        assert main.main(["update", *flags]) == 0
        read_until(server.stdout, "version 0001 is in use")
        asked = httpx.post(f"http://127.0.0.1:{port}/suggest", json={"prefix": "s"}, timeout=60)
        assert asked.json()["suggestions"]
    finally:
        server.terminate()
        server.communicate()
    lose_the_machine()
    capsys.readouterr()
    assert main.main(["update", *flags]) == 0
    assert "already in version 0001" in capsys.readouterr().out
    lose_the_machine()
    assert main.main(["update", f"--gin.WORK_DIR={bucket}", "--rollback"]) == 0
    monkeypatch.setenv(tables.MIRROR, str(tmp_path / "third"))
    found, expected = (onesug_jax.Suggester.load(str(path)) for path in (bucket, small_run))
    assert found.suggest("c", k=5) == expected.suggest("c", k=5)


def read_until(stream, words):
    """Reads the output of a process up to a line with these words."""
    lines = []
    for line in stream:
        lines.append(line)
        if words in line:
            return
    raise AssertionError("".join(lines))
