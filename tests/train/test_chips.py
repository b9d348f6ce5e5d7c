"""Chips are found by JAX's device kind."""

import pytest

from onesug_jax.train.chips import CHIPS, GPU_FLOPS, published_flops


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_is_found_by_its_kind(chip):
    """Also if one kind is a prefix of another: TPU v5, TPU v5 lite."""
    assert published_flops(chip.kind) == chip.flops


def test_gpus_are_found_by_the_prefix_of_their_kind():
    assert published_flops("NVIDIA A100-SXM4-80GB") == GPU_FLOPS["NVIDIA A100"]
    assert published_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert published_flops("NVIDIA H100 PCIe") == 756e12
    assert published_flops("cpu") is None
