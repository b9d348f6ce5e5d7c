"""A folder for the results of ingest."""

import pytest


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")
