"""The other side of a benchmark: a script that runs in a Python of its own, for bench_decode.py and
bench_train.py. It does not import onesug_jax, whose packages may clash with its own.
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
    """The other side could not run; the message says why."""


class Other:
    """A script of this folder, run by ONESUG_COMPARE_PYTHON: answers lines by lines of JSON.

    Args:
      script: the file's name.
      settings: its one argument, as JSON.

    Raises:
      NotRun: there is no such Python, or the script stopped; with its last words.
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
            self._asks, self._answers = self._process.stdin, self._process.stdout
        except OSError as error:
            raise NotRun(f"not run: ONESUG_COMPARE_PYTHON={python}: {error.strerror}") from None
        self.ready = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to `line`."""
        with contextlib.suppress(BrokenPipeError):  # it has stopped; its last words say why
            print(line, file=self._asks, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._asks.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["it stopped without a word"]
        raise NotRun(f"not run: {said[-1][:200]}")
