"""Fixtures of the prefix index's tests."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def index_toy():
    """The module `index_toy.py` beside this file."""
    path = pathlib.Path(__file__).with_name("index_toy.py")
    spec = importlib.util.spec_from_file_location("onesug_index_toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
