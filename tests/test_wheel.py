"""The wheel contains the package, its gin files and its page, and runs in an empty folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import httpx2 as httpx
import pytest

from tests.serve.asking import until
from tests.test_pipeline import SMALL

PARTS = ("onesug_jax", "gin_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(project_root, tmp_path_factory):
    """The wheel, built offline from a copy of the checkout."""
    try:
        import setuptools  # noqa: F401
    except Exception as error:
        pytest.skip(f"needs a setuptools that this Python can import: {error}")
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        path = project_root / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / part)
    out = source / "dist"
    flags = ("--no-deps", "--no-build-isolation", "--no-index")
    _pip(sys.executable, "wheel", str(source), *flags, "-w", str(out))
    (found,) = out.glob("*.whl")
    return found


def _pip(python, *words):
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_wheel_contains_code_settings_page_and_types(wheel, project_root):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        str(path.relative_to(project_root))
        for pattern in ("onesug_jax/**/*.py", "onesug_jax/serve/web/*", "onesug_jax/py.typed")
        for path in project_root.glob(pattern)
    }
    wanted |= {
        f"onesug_jax/{path.relative_to(project_root)}"
        for path in (project_root / "gin_configs").rglob("*.gin")
    }
    assert len(wanted) > 200
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == wanted
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in metadata if name.endswith("entry_points.txt"))
        assert b"onesug = onesug_jax.main:script" in archive.read(entry)


@pytest.mark.slow
def test_an_installed_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    """A dry run, a run of a small shop, its lists and its service, without the checkout."""
    venv.EnvBuilder(with_pip=True, symlinks=True).create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (inside,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (inside / "others.pth").write_text("\n".join(others))  # this environment's packages
    _pip(python, "install", "--no-deps", "--no-index", str(wheel))
    empty = tmp_path / "empty"
    empty.mkdir()

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(program, *words):
        done = subprocess.run(
            [python.with_name(program), *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    place = run("python", "-c", "import onesug_jax; print(onesug_jax.__file__)")
    assert pathlib.Path(place.strip()).is_relative_to(inside)
    assert "pretrain" in run("onesug", "--help")
    plan = run("onesug", "run", "--dry_run", "--gin_file=gin_configs/quickstart.gin")
    assert "# plan for" in plan and not list(empty.iterdir())
    run("onesug", "run", "--gin.WORK_DIR=work", *SMALL)
    assert (empty / "work" / "report" / "dev" / "index.html").is_file()
    copied = shutil.copytree(empty / "work" / "rwr" / "bundle", empty / "model")
    listed = json.loads(run("onesug", "suggest", f"--gin.WORK_DIR={copied}", "--prefix=", "--json"))
    command = ["serve", "--gin.WORK_DIR=work", "--gin.ServerConfig.port=0"]
    with subprocess.Popen(
        [python.with_name("onesug"), *command],
        cwd=empty,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        said = ""
        while not (found := re.search(r"http://\S+:\d+", said)):
            line = server.stdout.readline()
            assert line, said
            said += line
        until(lambda: httpx.get(f"{found[0]}/ready").status_code == 200, seconds=120)
        answer = httpx.post(f"{found[0]}/suggest", json={"prefix": ""}, timeout=120).json()
        server.terminate()
        rest = server.stdout.read()
    assert server.returncode == 0, said + rest
    assert len(answer["suggestions"]) == len(listed["suggestions"]) > 0
