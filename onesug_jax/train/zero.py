"""Optimizer state sharded over `data` (ZeRO-1).

Otherwise every copy of the parameters on `data` holds the same moments and computes the same
update. Here gradients are summed into shards, a device updates the shard whose moments it holds,
and the new parameters are gathered. With a reduce-scatter, the links carry as many bytes as for one
all-reduce (Rajbhandari et al. 2020). Slices (`replica`) hold the same shards and exchange only
gradients.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
WHOLE_BELOW = 2**16  # bytes: sharding a smaller array saves little and costs a collective


def piece_sharding(array: Any, sharding: NamedSharding) -> NamedSharding:
    """The sharding of a parameter's moments and gradient.

    It is the parameter's `sharding`, and `data` also shards the dimension with the largest parts
    that divides over it. Small arrays, and arrays without such a dimension, keep `sharding`.

    Args:
      array: an object with the parameter's shape and dtype.
    """
    mesh, own = sharding.mesh, sharding.shard_shape(array.shape)
    nbytes = math.prod(array.shape) * jnp.dtype(array.dtype).itemsize
    divisible = [i for i, size in enumerate(own) if size % mesh.shape[AXIS] == 0]
    if mesh.shape[AXIS] == 1 or nbytes < WHOLE_BELOW or not divisible:
        return sharding
    cut = max(divisible, key=lambda i: own[i])
    spec = [*sharding.spec, *[None] * (len(own) - len(sharding.spec))]
    axes = (spec[cut],) if isinstance(spec[cut], str) else spec[cut] or ()
    spec[cut] = (*axes, AXIS)
    return NamedSharding(mesh, P(*spec))


def pieces(tree: Any, shardings: Any) -> Any:
    """`piece_sharding` of every parameter of a tree."""
    return jax.tree.map(piece_sharding, tree, shardings)


def in_pieces(tree: Any, shardings: Any) -> Any:
    """Constrains a traced tree to `pieces`; `shardings` are those of the parameters."""
    return jax.lax.with_sharding_constraint(tree, pieces(tree, shardings))
