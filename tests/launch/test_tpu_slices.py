"""Accelerator types: chips, topologies, hosts and GKE's names, by Cloud TPU's tables."""

import importlib.util
import sys

import pytest


@pytest.fixture(scope="module")
def slices(project_root):
    path = project_root / "launch" / "tpu_slices.py"
    spec = importlib.util.spec_from_file_location("tpu_slices", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tpu_slices"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "chips", "topology", "machines", "hosts", "label"),
    [
        ("v4-8", 4, "2x2x1", 1, 1, "tpu-v4-podslice"),
        ("v4-32", 16, "2x2x4", 4, 4, "tpu-v4-podslice"),
        ("v5litepod-1", 1, "1x1", 1, 1, "tpu-v5-lite-podslice"),
        ("v5litepod-8", 8, "2x4", 1, 2, "tpu-v5-lite-podslice"),
        ("v5litepod-16", 16, "4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v5litepod-256", 256, "16x16", 64, 64, "tpu-v5-lite-podslice"),
        ("v5p-128", 64, "4x4x4", 16, 16, "tpu-v5p-slice"),
        ("v5p-1024", 512, "8x8x8", 128, 128, "tpu-v5p-slice"),
        ("v6e-256", 256, "16x16", 64, 64, "tpu-v6e-slice"),
        ("tpu7x-128", 64, "4x4x4", 16, 16, "tpu7x"),
    ],
)
def test_types_of_the_tables(slices, kind, chips, topology, machines, hosts, label):
    one = slices.Slice.parse(kind)
    assert (one.chips, one.topology, one.machines) == (chips, topology, machines)
    assert (one.hosts, one.generation.label) == (hosts, label)
    assert one.hosts * one.chips_per_host == chips


def test_a_size_of_several_topologies_takes_the_given_one(slices):
    assert slices.Slice.parse("v5p-768").topology == ""
    assert slices.Slice.parse("v5p-768", "4x8x12").topology == "4x8x12"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("v3-8",), "expected one of v4"),
        (("v5e",), "a number"),
        (("v5p-7",), "multiple of 8"),
        (("v5litepod-6",), "multiple of 4"),
        (("v5p-128", "8x8"), "3 sides and 64 chips"),
        (("v5p-128", "4x4x8"), "64 chips"),
    ],
)
def test_invalid_types_are_refused(slices, words, message):
    with pytest.raises(slices.FlagError, match=message):
        slices.Slice.parse(*words)


def test_compile_has_the_same_types(slices):
    """`compile --topology` and the launcher name the same accelerator."""
    from onesug_jax.train.chips import CHIPS

    for chip in CHIPS.values():
        generation = slices.GENERATIONS[chip.accelerator]
        assert generation.cores == chip.cores
