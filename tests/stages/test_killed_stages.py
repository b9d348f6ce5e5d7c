"""The stages before training, killed at random moments: a repeated command makes the same files."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from onesug_jax.pipeline.workdir import MANIFEST
from tests.pipeline.shop import tree
from tests.test_pipeline import SMALL

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = {"ingest": "log", "mine": "mined"}
FOLDERS |= {name: name for name in ("index", "vocab", "examples", "rewards")}
TRAINED = ("pretrain", "rwr", "report", "cascade")

# Runs a command, and kills it at a certain change of the file system.
CHILD = """
import os, signal, sys
from onesug_jax import main
from tests.pipeline import shop
seen, last = 0, int(sys.argv[1])
def count(event, arguments):
    global seen
    if event in shop._EVENTS and (event != "open" or shop._writes(arguments)):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
code = main.main(sys.argv[2:])
print(seen)
sys.exit(code)
"""


def run(stage: str, work: pathlib.Path, kill_at: int = 0) -> subprocess.CompletedProcess:
    """Runs a stage; the last word of its output is the number of changes to the file system."""
    command = [sys.executable, "-c", CHILD, str(kill_at), stage, f"--gin.WORK_DIR={work}", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results(folder: pathlib.Path) -> dict[str, bytes]:
    """All files except the manifest, which contains times."""
    return {name: content for name, content in tree(folder).items() if name != MANIFEST}


@pytest.mark.slow
@pytest.mark.parametrize("stage", FOLDERS)
def test_a_stage_killed_at_random_moments_makes_the_same_files(small_run, tmp_path, stage):
    work = tmp_path / "work"
    shutil.copytree(small_run, work, ignore=shutil.ignore_patterns(*TRAINED, ".compiled"))
    place = work / FOLDERS[stage]
    shutil.rmtree(place)
    done = run(stage, work)
    assert done.returncode == 0, done.stderr
    expected, changes = results(place), int(done.stdout.split()[-1])
    assert len(expected) > 2
    for kill_at in random.Random(stage).sample(range(1, changes), 3):
        shutil.rmtree(place)
        assert run(stage, work, kill_at).returncode == -signal.SIGKILL
        done = run(stage, work)
        assert done.returncode == 0, done.stderr
        assert results(place) == expected, f"killed at change {kill_at} of {changes}"
