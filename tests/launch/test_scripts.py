"""The launch scripts have valid syntax, and the extras match the installed and tested packages."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_accepts_them(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    bin_folder = os.path.dirname(sys.executable)  # of an environment that is not on PATH
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=bin_folder)
    if command is None:
        pytest.skip("needs shellcheck: pip install 'onesug_jax[dev]'")
    done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_requirements_are_the_dependencies_and_three_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"]}.union(
        *(extras[name] for name in ("seqio", "serve", "test"))
    )
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted
    (jax,) = (one for one in project["dependencies"] if one.startswith("jax>"))
    for extra in ("tpu", "cuda"):
        assert re.sub(r"\[\w+\]", "", extras[extra][0]) == jax


def test_test_tools_are_not_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = {re.match(r"[\w-]+", one)[0] for one in project["optional-dependencies"]["test"]}
    assert "pytest" in tools
    assert not tools & {re.match(r"[\w-]+", one)[0] for one in project["dependencies"]}


def test_the_image_has_the_locked_packages_where_the_worker_looks():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.12", text, flags=re.MULTILINE)
    assert "pip install --no-cache-dir -r requirements.lock.txt" in text
    assert '-c requirements.lock.txt "jax[tpu]" gcsfs' in text
    worker = (ROOT / "launch" / "tpu_worker.sh").read_text()
    assert "WORKDIR /onesug/code" in text and '"$home/venv/bin/python"' in worker
    assert "venv /onesug/venv" in text and "--python 3.12" in worker
    gke = (ROOT / "launch" / "tpu_gke.py").read_text()
    assert 'WORKER = "/onesug/code/launch/tpu_worker.sh"' in gke
