"""The serving path is light: in a new process it loads neither TensorFlow nor SeqIO."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ("tensorflow", "seqio", "tensorflow_datasets", "clu")


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def loaded(code: str, modules=HEAVY) -> list[str]:
    out = python(f"import sys\n{code}\nprint(*[m for m in {modules!r} if m in sys.modules], '.')")
    return out.split()[:-1]


def serving_modules() -> list[str]:
    package = ROOT / "onesug_jax"
    paths = [package / "logs" / "schema.py", package / "logs" / "completion.py"]
    paths += [package / "tasks" / "vocabulary.py", package / "tasks" / "features.py"]
    paths += [package / "train" / "checkpoint.py"]
    for folder in ("model", "decode", "serve"):
        paths += sorted((package / folder).glob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


@pytest.mark.long
def test_the_serving_path_loads_no_tensorflow():
    assert loaded("\n".join(f"import {name}" for name in serving_modules())) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("tasks.vocabulary", ("jax", "pyarrow", "grain")),
        ("tasks.features", ("jax", "pyarrow", "grain")),
        ("tasks.examples", ("jax",)),
        ("tasks.loader", ()),
        ("semantic_ids.quantiser", ("jax", "pyarrow")),
        ("semantic_ids.ids", ("jax", "pyarrow")),
    ],
)
def test_modules_of_loading_and_serving_are_light(module, heavy):
    assert loaded(f"import onesug_jax.{module}", (*HEAVY, *heavy)) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "words", [["suggest", "--prefix=s"], ["doctor"], ["pretrain", "--help"]], ids=" ".join
)
def test_light_commands_load_no_tensorflow(words, tmp_path):
    words = [*words, f"--gin.WORK_DIR={tmp_path}"]
    code = f"from onesug_jax.main import main\nassert main({words!r}) in (0, 1, 2)"  # no model
    assert loaded(code) == []


def test_help_does_not_load_jax():
    code = "from onesug_jax.main import main\nassert main(['--help']) == 0"
    assert loaded(code, ("jax", "numpy", *HEAVY)) == []


def test_the_probe_finds_loaded_modules():
    assert loaded("import numpy", ("numpy", "jax")) == ["numpy"]
