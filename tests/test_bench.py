"""The bench runs and prints its tables; the times in them are never asserted on."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["decode", "train", "rwr"])
def test_suite_prints_its_table(suite, project_root):
    command = [sys.executable, "launch/bench.py", "--suite", suite, "--model", "mini"]
    done = subprocess.run(
        [*command, "--count", "8"], cwd=project_root, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    rows = {
        "decode": ["text to text", "no caches, same scores"],
        "train": ["bucketed", "packed"],
        "rwr": ["encode once", "repeat the request"],
    }
    for row in rows[suite]:
        assert row in done.stdout
