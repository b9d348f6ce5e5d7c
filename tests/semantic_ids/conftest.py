"""Fixtures of the quantiser's tests."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def rqvae_toy():
    """The module `rqvae_toy.py` beside this file."""
    path = pathlib.Path(__file__).with_name("rqvae_toy.py")
    spec = importlib.util.spec_from_file_location("onesug_rqvae_toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
