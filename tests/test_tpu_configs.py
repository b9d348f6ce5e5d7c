"""gin_configs/tpu/: each file has a header, divides over its slice, and fits its chips."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from onesug_jax import main
from onesug_jax.train.chips import Topology
from tests.stages.test_compile import FOLDER, NEEDS_COMPILER

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "gin_configs"
FILES = [path for path in sorted((CONFIGS / "tpu").glob("*.gin")) if path.stem != "all"]


def topology(path: pathlib.Path) -> Topology:
    """The slice that the file's header compiles for."""
    return Topology.parse(re.search(r"--topology=(\S+)", path.read_text())[1])


def test_the_slices_are_those_of_the_readme():
    assert {path.stem for path in FILES} == {"v5e_16", "v5e_256", "v5p_64", "v5p_512", "v6e_256"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_and_sizes(path):
    text, slice_ = path.read_text(), topology(path)
    chip, chips = path.stem.split("_")
    assert slice_.chip.name == chip and slice_.chips == int(chips)
    assert f"{slice_.chip.accelerator}-{slice_.chips * slice_.chip.cores} " in text
    for word in ("# Hardware: ", "# Time: ", "# Expected: "):
        assert word in text
    config = main.read_config([f"tpu/{path.name}"])
    assert config.bindings["ModelConfig.dtype"] == "bfloat16"
    settings = config.settings(["make_mesh", "align", "quantize"])
    assert slice_.chips % settings["make_mesh.fsdp"] == 0 and settings["make_mesh.tensor"] == 1
    batches = [config.macro("BATCH_SIZE")]
    batches += [settings[f"{stage}.batch_size"] for stage in ("align", "quantize")]
    assert all(size % slice_.chips == 0 for size in batches)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_compiles_within_the_chips_memory(path):
    command = (sys.executable, "-m", "onesug_jax.main", "compile", "--json", "--only=pretrain")
    paths = [str(CONFIGS.parent), FOLDER, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.pop("XLA_FLAGS", None)
    flags = (f"--gin_file={path}", f"--topology={topology(path).name}")
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["fits"] and 0 < found["needed"] < 0.9 * topology(path).chip.memory
    assert found["chips"] == topology(path).chips
    assert found["bound_s"] < found["estimate_s"][0] < found["estimate_s"][1]
