"""Another process that holds the lock of a folder."""

import contextlib
import pathlib
import signal
import subprocess
import sys

_SCRIPT = """
import sys
from onesug_jax.pipeline.lock import WriterLock
with WriterLock(sys.argv[1], "train"):
    print("holds", flush=True)
    sys.stdin.read()
"""
_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def held(folder, *, dies=False):
    """The id of a process that holds the lock of `folder`; at the end it exits, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line == "holds\n", process.communicate()[1]
        yield process.pid
    finally:
        if dies:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
