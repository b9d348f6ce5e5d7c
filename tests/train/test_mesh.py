"""Meshes use all devices, axes are sharded by the table, indivisible sizes are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError
from onesug_jax.train import layout
from onesug_jax.train import mesh as meshes


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1)),
        ({"fsdp": 2, "tensor": 2}, (1, 2, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 1, 8, 1)),
        ({"data": 2, "fsdp": 1, "tensor": -1}, (1, 2, 1, 4)),
        ({"replica": 2, "tensor": 2}, (2, 2, 1, 2)),
    ],
)
def test_minus_one_is_the_remaining_devices(sizes, shape):
    mesh = meshes.make_mesh(**sizes)
    assert tuple(mesh.shape.values()) == shape
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [
        ({"tensor": 3}, ["tensor=3", "8 cpu"]),
        ({"data": 2, "fsdp": 2, "tensor": 1}, ["data=2, fsdp=2", "product 4", "8"]),
        ({"data": -1, "fsdp": -1}, ["fsdp=-1", "at most one"]),
        ({"data": 0}, ["data=0", "positive"]),
    ],
)
def test_refuses_a_product_that_is_not_the_number_of_devices(sizes, messages):
    with pytest.raises(UserError) as error:
        meshes.make_mesh(**sizes)
    assert all(word in str(error.value) for word in messages)


def test_parameters_are_sharded_by_the_table(mesh_of):
    mesh = mesh_of(2, 2, 2)
    tree = {
        "embedding": boxed((16, 8), ("vocab", "embed")),
        "wi": boxed((3, 8, 32), ("layers", "embed", "mlp")),
        "query": boxed((8, 4, 6), ("embed", "heads", "kv")),
        "relpos": boxed((32, 4), ("relpos_buckets", "heads")),
        "plain": jax.ShapeDtypeStruct((7,), jnp.float32),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, layout.param_shardings(tree, mesh))
    assert specs == {
        "embedding": P("tensor", "fsdp"),
        "wi": P(None, "fsdp", "tensor"),
        "query": P("fsdp", "tensor", None),
        "relpos": P(None, "tensor"),
        "plain": P(),
    }


def test_an_array_uses_an_axis_of_the_mesh_once(mesh_of):
    tree = {"gate": boxed((8, 8), ("heads", "mlp"))}
    spec = layout.param_shardings(tree, mesh_of(1, 1, 8))["gate"].spec
    assert sorted(spec, key=str) == [None, "tensor"]


def test_refuses_a_dimension_that_does_not_divide(mesh_of):
    tree = {"encoder": {"wi": boxed((8, 6), ("embed", "mlp"))}}
    with pytest.raises(UserError, match=r"encoder/wi \[8, 6\]: dimension 1 \('mlp', 6\).*tensor=4"):
        layout.param_shardings(tree, mesh_of(1, 1, 4))
    layout.param_shardings(tree, mesh_of(1, 1, 2))


def test_refuses_a_logical_axis_that_is_not_in_the_table(mesh_of):
    with pytest.raises(ValueError, match="wi: logical axis 'hidden'"):
        layout.param_shardings({"wi": boxed((8,), ("hidden",))}, mesh_of(1))


def test_a_batch_is_sharded_over_data_and_fsdp_in_order(mesh_of):
    mesh = mesh_of(2, 2, 2)
    local = {"tokens": np.arange(24).reshape(8, 3)}
    batch = meshes.global_batch(mesh, local)
    np.testing.assert_array_equal(batch["tokens"], local["tokens"])
    assert batch["tokens"].sharding.shard_shape((8, 3)) == (2, 3)
    np.testing.assert_array_equal(meshes.process_batch_shard(mesh, 8), np.arange(8))
    with pytest.raises(UserError, match=r"'tokens': 6 examples.*data=2 x fsdp=2 = 4"):
        meshes.global_batch(mesh, {"tokens": np.zeros((6, 3))})
    with pytest.raises(UserError, match="batch: 6 examples"):
        meshes.process_batch_shard(mesh, 6)
