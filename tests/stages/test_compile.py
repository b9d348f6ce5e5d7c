"""The compile stage: refused arguments, its report, and small steps compiled for TPUs."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from onesug_jax.errors import UserError
from onesug_jax.main import context_of, main
from onesug_jax.stages.compile_steps import Sizes, build_step
from onesug_jax.train.chips import CHIPS, Topology
from onesug_jax.train.compile import Analysis, _memory_needed, format_analysis
from onesug_jax.train.flops import flops

pytestmark = pytest.mark.eight_devices

# Installed into a separate folder: beside jax it would search for a TPU at every start.
FOLDER = os.environ.get("ONESUG_LIBTPU", "")
NEEDS_COMPILER = pytest.mark.skipif(
    not os.path.isdir(os.path.join(FOLDER, "libtpu")) and not importlib.util.find_spec("libtpu"),
    reason="needs the TPU compiler: pip install --target F 'libtpu==0.0.42.*'; ONESUG_LIBTPU=F",
)


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:16", "v9:4x4", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "v5e:4x4 "]
)
def test_an_invalid_topology_is_refused(text):
    with pytest.raises(UserError, match="--topology"):
        Topology.parse(text)


def test_topologies_and_chips():
    slice_ = Topology.parse("v5p:4x4x8")
    assert slice_.chips == 128 and slice_.name == "v5p:4x4x8" and slice_.chip is CHIPS["v5p"]


def test_an_unknown_step_is_refused(capsys):
    assert main(["compile", "--topology=v5e:2x2", "--only=pretrian"]) == 2
    assert "pretrain, rwr, align, serve" in capsys.readouterr().err


def test_needed_memory_is_read_from_the_compilers_error():
    error = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    error += "space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    assert _memory_needed(error) == 20.5 * 2**30
    assert _memory_needed("INTERNAL: something else") is None


def test_the_text_of_an_analysis():
    sums = {"all-reduce data": {"runs": 3, "bytes": 2.0**21, "links": 2.0**22, "network": 2.0**20}}
    about = {"step": "rwr", "topology": "v5e:2x2", "chips": 4, "mesh": {"data": 4}}
    fits = Analysis(
        **about, fits=True, needed=2.0**33, memory=2.0**34, compute_s=0.002, memory_s=0.003,
        links_s=0.001, network_s=0.0005, collectives=sums, tokens=6000, peak=1e12, model_flops=1e9,
    )  # fmt: skip
    text, time = format_analysis(fits), fits.forecast
    for word in (
        "8.00 of 16 GiB",
        "all-reduce data                  3 runs        2.0 MiB; sent 4.0 MiB, 1.0 between slices",
        "links 1.00 ms, network between slices 0.50 ms",
        "bound        3.00 ms a step (memory)",
        "6.50 ms if nothing overlaps",
        f"estimate     between {1e3 * time.fast:.1f} and {1e3 * time.slow:.1f} ms",
        f"MFU {100e-3 / time.slow:.0f} to {100e-3 / time.fast:.0f} %",
    ):
        assert word in text
    assert "MFU" not in text.split("estimate")[0]  # no bound is called a utilisation
    assert fits.as_json()["estimate_s"] == [time.fast, time.slow]
    too_large = format_analysis(Analysis(**about, fits=False, needed=2.0**35, memory=2.0**34))
    assert "DOES NOT FIT: 32.00 of 16 GiB" in too_large


def compiled(*words):
    """The exit code and the output of the stage, with errors if it fails."""
    return python("-m", "onesug_jax.main", "compile", *words)


def python(*words):
    """The same for any Python command, in a new process: jax reads the TPU settings once."""
    paths = [os.getcwd(), FOLDER, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 2), done.stderr
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


@NEEDS_COMPILER
def test_an_axis_may_take_a_part_of_a_side_of_the_torus():
    """Eight of 4 x 4 x 4 chips are not a product of full sides."""
    script = """
from onesug_jax.train.chips import Topology
from onesug_jax.train.mesh import make_mesh
mesh = make_mesh(fsdp=8, devices=Topology.parse("v5p:4x4x4").devices())
print(mesh.shape["data"], mesh.shape["fsdp"], len({device.id for device in mesh.devices.flat}))
"""
    assert python("-c", script) == (0, "8 8 64\n")


@pytest.mark.long
@pytest.mark.parametrize("items", [True, False])
@pytest.mark.parametrize("name", ["pretrain", "rwr"])
def test_flops_of_the_model_are_those_of_the_step(name, items):
    """FLOPs counted on the jitted step, within 10 % of those computed from the configuration."""
    flags = ("--topology=v5e:2x2", "--gin.MODEL=nano", f"--gin.FeatureSpec.items={items}")
    context = context_of("compile", *flags)
    sizes = Sizes(vocabulary=2048, vector=128, lists=8, queries=100)
    step = build_step(name, context, jax.devices()[:2], sizes)
    counted = flops(step.jitted.trace(*step.arguments).jaxpr, 1)
    assert counted == pytest.approx(step.model_flops, rel=0.1)


SMALL = ("--gin.MODEL=mini", "--gin.FeatureSpec.items=False", "--gin.compile.vocabulary=2048")


@pytest.mark.long
@NEEDS_COMPILER
def test_a_small_step_for_four_chips():
    words = ("--topology=v5e:2x2", "--only=pretrain", "--json", "--gin.ModelConfig.unroll=False")
    code, output = compiled(*SMALL, *words)
    (found,) = json.loads(output)
    assert code == 0 and found["fits"] and found["chips"] == 4
    # Gradients of all parameters are summed over the four chips, and the new ones gathered.
    assert found["collectives"]["all-gather data"]["bytes"] > 4 * 500_000
    # The first layer computes no gradient of its input, which comes from the token table.
    assert found["flops"] == pytest.approx(found["model_flops"], rel=0.02)
    assert found["bound_s"] == max(found["compute_s"], found["memory_s"], found["links_s"])
    assert found["bound_s"] < found["estimate_s"][0] < found["estimate_s"][1]
    assert 0 < found["mfu"][0] < found["mfu"][1] < 1


@pytest.mark.long
@NEEDS_COMPILER
def test_an_unknown_compiler_option_is_refused():
    option = "--gin.compiler_options.tpu={'xla_tpu_no_such_option': True}"
    code, output = compiled(*SMALL, option, "--topology=v4:2x2x1", "--only=pretrain")
    assert code == 2 and "Traceback" not in output
    assert "compiler_options.tpu: xla_tpu_no_such_option = True is refused" in output


@pytest.mark.long
@NEEDS_COMPILER
def test_a_batch_that_does_not_divide_over_the_slice_is_refused():
    code, output = compiled(*SMALL, "--topology=v5e:2x2", "--only=rwr", "--gin.BATCH_SIZE=6")
    assert code == 2 and "Traceback" not in output
    assert "rwr.batch_size: 6 examples do not divide over mesh axes replica=1 x data=4" in output
    assert "choose a multiple of 4, such as 4 or 8" in output


@NEEDS_COMPILER
@pytest.mark.slow
def test_a_step_that_does_not_fit_comes_with_a_change_that_makes_it_fit():
    words = ("--topology=v5e:2x2", "--only=pretrain", "--gin.BATCH_SIZE=131072")
    code, output = compiled(*SMALL, *words)
    assert code == 2 and "DOES NOT FIT" in output and "it fits with --gin." in output
