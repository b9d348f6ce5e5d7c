"""ZeRO-1: the dimension that is sharded over `data`; updates equal those without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.train import step as steps
from onesug_jax.train import train_state, zero
from onesug_jax.train.mesh import global_batch
from onesug_jax.train.optimizer import averaged, make_optimizer


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((16, 32), P(), P(None, "data")),
        ((64, 32), P(), P("data", None)),
        ((32, 32), P("fsdp"), P("fsdp", "data")),
        ((128, 32), P("fsdp"), P(("fsdp", "data"), None)),
        ((12, 64, 30), P(None, "fsdp", "tensor"), P(None, ("fsdp", "data"), "tensor")),
        ((12, 6, 30), P(None, "fsdp"), P("data", "fsdp", None)),
        ((6, 5), P(), P()),  # nothing divides
        ((), P(), P()),
    ],
)
def test_the_dimension_with_the_largest_parts_is_sharded(mesh_of, shape, spec, expected):
    mesh = mesh_of(4, 2, 1)
    sharding = zero.piece_sharding(jnp.zeros(shape), NamedSharding(mesh, spec))
    assert sharding.is_equivalent_to(NamedSharding(mesh, expected), len(shape))


def test_small_arrays_and_a_single_copy_are_not_sharded(mesh_of, monkeypatch):
    monkeypatch.setattr(zero, "WHOLE_BELOW", 2**16)
    replicated = NamedSharding(mesh_of(4, 2, 1), P())
    small, large = jnp.zeros((128, 127)), jnp.zeros((128, 128))
    assert zero.piece_sharding(small, replicated) is replicated
    assert zero.piece_sharding(large, replicated).spec == P(("data",), None)
    alone = NamedSharding(mesh_of(1, 4, 2), P())
    assert zero.piece_sharding(large, alone) is alone


def trained(toy, mesh, **settings):
    """State and metrics after four updates."""
    stage, optimizer = toy.make_stage(), make_optimizer("adamw", 0.02, average=0.9, **settings)
    update = steps.make_train_step(stage, optimizer, mesh)
    state = train_state.init_state(stage, optimizer, mesh, 0)
    for t in range(4):
        state, metrics = update(state, global_batch(mesh, toy.make_batch_at()(t)), None)
    return state, metrics


@pytest.mark.long
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_updates_of_sharded_state_equal_those_of_whole_state(toy, mesh_of, monkeypatch, shape):
    mesh = mesh_of(*shape)
    pieces, reported = trained(toy, mesh, clip_norm=0.1, weight_decay=0.1)
    monkeypatch.setattr(zero, "WHOLE_BELOW", 2**30)
    whole, expected = trained(toy, mesh, clip_norm=0.1, weight_decay=0.1)
    for one, other in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-6)
    assert float(reported["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=1e-5)
    kernel = whole.params["Dense_0"]["kernel"]

    def held(state):
        """Bytes of optimizer state on the first device."""
        leaves = jax.tree.leaves(state.opt_state)
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves if leaf.ndim)

    assert held(pieces) == pytest.approx(held(whole) / shape[0], rel=0.01)
    average = averaged(pieces.opt_state, pieces.params)["Dense_0"]["kernel"]
    assert average.sharding.is_equivalent_to(kernel.sharding, 2)  # for evaluation and saving
