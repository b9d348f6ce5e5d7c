"""Starts programs in separate processes, which may join to one run."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def python(*words, **environment):
    """A Python with these arguments and, of the variables ONESUG_*, only the given ones."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("ONESUG_")}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**others, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def joined(count, *words, **environment):
    """`count` processes of one run."""
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"ONESUG_PROCESSES": str(count), "ONESUG_COORDINATOR": f"127.0.0.1:{port}"}
    own = [{"ONESUG_PROCESS": str(index)} if count > 1 else {} for index in range(count)]
    return [python(*words, **environment, **each) for each in own]
