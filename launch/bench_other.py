"""The other side of bench_decode.py and bench_train.py: a script that runs in another Python,
because its packages may clash with those of onesug_jax.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

NOT_RUN = (
    "not run: set ONESUG_COMPARE_PYTHON to a Python with the packages of requirements-compare.txt"
)


class NotRun(Exception):
    """The other side could not run; the message has the reason."""


class Other:
    """A script of this folder, run by ONESUG_COMPARE_PYTHON; replies to each line with JSON.

    Args:
      script: the file's name.
      settings: its one argument, as JSON.

    Raises:
      NotRun: there is no such Python, or the script stopped.
    """

    def __init__(self, script: str, settings: dict[str, Any]):
        python = os.environ.get("ONESUG_COMPARE_PYTHON")
        if not python:
            raise NotRun(NOT_RUN)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PYTHONPATH", None)
        self._errors = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                [python, pathlib.Path(__file__).with_name(script), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
            assert self._process.stdin and self._process.stdout
            self._stdin, self._stdout = self._process.stdin, self._process.stdout
        except OSError as error:
            raise NotRun(f"not run: ONESUG_COMPARE_PYTHON={python}: {error.strerror}") from None
        self.ready = self._reply()

    def request(self, line: str) -> dict[str, Any]:
        """The reply to `line`."""
        with contextlib.suppress(BrokenPipeError):  # it has stopped; `_reply` raises its message
            print(line, file=self._stdin, flush=True)
        return self._reply()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["it stopped without a message"]
        raise NotRun(f"not run: {lines[-1][:200]}")
