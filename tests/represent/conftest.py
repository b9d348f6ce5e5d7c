"""Fixtures of the first pillar's tests."""

import importlib.util
import pathlib

import pytest


def _beside(name: str):
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"onesug_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def index_toy():
    """The module `index_toy.py` beside this file."""
    return _beside("index_toy")


@pytest.fixture(scope="session")
def rqvae_toy():
    """The module `rqvae_toy.py` beside this file."""
    return _beside("rqvae_toy")
