"""Worker processes end with the command that started them."""

import os
import subprocess
import sys
import time

import pytest

STARTS = """
import operator, os, tempfile, time
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.logs.workers import open_workers

if __name__ == "__main__":
    with open_workers(LogEngineConfig(workers=1), tempfile.gettempdir()) as (_, submit):
        print(submit(operator.call, os.getpid).result(), flush=True)
        submit(time.sleep, 600)
        time.sleep(600)
"""


def runs(process: int) -> bool:
    """Whether a process exists and is no zombie, which waits for init to collect it."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it ended just now, or the system has no /proc
        return not os.path.isdir("/proc/self")


def test_workers_of_a_killed_command_end(project_root, tmp_path):
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    command = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        worker = int(command.stdout.readline())
        assert runs(worker)
    finally:
        command.kill()
        command.wait()
    for _ in range(300):
        if not runs(worker):
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker outlived the command that started it")
