"""The built wheel holds the package, its gin files and its page, and runs in an empty folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

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
    words = [
        "wheel",
        str(source),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(out),
    ]
    _pip(sys.executable, *words)
    (found,) = out.glob("*.whl")
    return found


def _pip(python, *words):
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_wheel_holds_code_settings_page_and_types(wheel, project_root):
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
    """`--help`, a dry run of all stages, and a short stage; nothing comes from the checkout."""
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
    run("onesug", "simulate", "--gin.WORK_DIR=work", "--gin.simulate.requests=200")
    assert (empty / "work" / "simulated").is_dir()
