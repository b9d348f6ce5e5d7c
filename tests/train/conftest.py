"""Fixtures of the training tests."""

import json

import pytest

from tests.conftest import compiled_in


@pytest.fixture(scope="session")
def toy():
    """The toy stage's module, `toy.py` beside this file."""
    from tests.train import toy

    return toy


@pytest.fixture(autouse=True)
def optimizer_state_in_pieces(monkeypatch):
    """The toy's small arrays are sharded over `data` too."""
    monkeypatch.setattr("onesug_jax.train.zero.WHOLE_BELOW", 0)


@pytest.fixture(scope="session")
def mesh_of():
    """(data, fsdp, tensor) -> a mesh over that many of the eight fake devices."""
    import jax

    from onesug_jax.train.mesh import make_mesh

    def make(data=1, fsdp=1, tensor=1):
        return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])

    return make


@pytest.fixture
def train(toy, mesh_of):
    """fit on the toy stage with default settings."""
    from onesug_jax.train.loop import fit
    from onesug_jax.train.optimizer import make_optimizer

    def run(folder, steps=12, mesh=(1, 1, 1), stage=None, **changed):
        settings = {
            "batch_at": toy.make_batch_at(),
            "batch_size": 16,
            "identity": {"model": "toy"},
            "optimizer": make_optimizer("adamw", 0.02, 3, "cosine", 40),
            "seed": 7,
            "log_every": 2,
            "checkpoint_every": 4,
            **changed,
        }
        stage = stage or toy.make_stage(dropout=0.1)
        return fit(stage, mesh=mesh_of(*mesh), steps=steps, folder=folder, **settings)

    return run


@pytest.fixture(scope="session")
def rows():
    """(folder, kind) -> the rows of its metrics.jsonl."""

    def read(folder, kind="train"):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    return read


@pytest.fixture(scope="session")
def losses(rows):
    """folder -> {step: loss} of its metrics.jsonl."""
    return lambda folder: {row["step"]: row["loss"] for row in rows(folder)}


@pytest.fixture(scope="module", autouse=True)
def devices(tmp_path_factory):
    """Eight devices; a module compiles its toy once."""
    with compiled_in(tmp_path_factory.mktemp("compiled")):
        yield
