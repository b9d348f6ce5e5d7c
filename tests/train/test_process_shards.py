"""Processes with rows that are not contiguous train to the losses of one process."""

import numpy as np
import pytest

from tests.train.several import joined

TRAIN = """
import sys
from onesug_jax.train.distributed import start_processes
start_processes()
import jax
from onesug_jax.train import mesh as meshes
from onesug_jax.train.loop import fit
from onesug_jax.train.optimizer import make_optimizer
from tests.train import toy

local = jax.local_device_count()
order = [device for i in range(local) for device in jax.devices()[i::local]]  # hosts take turns
mesh = meshes.make_mesh(replica=2, data=1, fsdp=int(sys.argv[2]), tensor=-1, devices=order)
rows = meshes.process_batch_shard(mesh, 16)
print("rows", *rows)
batch_at = toy.make_batch_at()
fit(
    toy.make_stage(dropout=0.1),
    batch_at=lambda step: {name: x[rows] for name, x in batch_at(step).items()},
    batch_size=16, mesh=mesh, optimizer=make_optimizer("adamw", 0.02, 3, "cosine", 40), steps=6,
    seed=7, folder=sys.argv[1], identity={"model": "toy"}, log_every=1, checkpoint_every=3,
    accumulation=2,
)
"""


def train(folder, count, fsdp):
    """Trains with `count` processes that share four devices; returns the rows of each process."""
    flags = (
        f"--xla_force_host_platform_device_count={4 // count} --xla_backend_optimization_level=0 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=500"
    )
    processes = joined(count, "-c", TRAIN, folder, fsdp, XLA_FLAGS=flags)
    rows = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        (line,) = [line for line in out.splitlines() if line.startswith("rows")]
        rows.append([int(word) for word in line.split()[1:]])
    return rows


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "fsdp", "shares"),
    [
        # Two hosts with two alternating chips each.
        (2, 2, [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]),
        # Four hosts with one chip each; two of them hold one copy of the model.
        pytest.param(4, 1, [[*range(8)]] * 2 + [[*range(8, 16)]] * 2, marks=pytest.mark.slow),
    ],
)
def test_shares_that_are_not_contiguous(tmp_path, losses, count, fsdp, shares):
    assert train(tmp_path / "one", 1, fsdp) == [[*range(16)]]
    assert train(tmp_path / "many", count, fsdp) == shares
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert list(one) == list(many) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-5)
