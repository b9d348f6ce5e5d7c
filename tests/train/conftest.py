"""Fixtures of the engine's tests."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def toy():
    """The toy stage's module, `toy.py` beside this file."""
    path = pathlib.Path(__file__).with_name("toy.py")
    spec = importlib.util.spec_from_file_location("onesug_toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mesh_of():
    """(data, fsdp, tensor) -> a mesh over that many of the eight fake devices."""
    import jax

    from onesug_jax.train.mesh import make_mesh

    def make(data=1, fsdp=1, tensor=1):
        return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])

    return make
