"""Optimizer state in pieces: what an update remembers of an array is cut over `data` (ZeRO-1).

Every copy of the parameters on `data` would hold the same moments and compute the same update.
Instead, gradients are summed into pieces, a device updates the piece whose moments it holds, and
the new parameters are gathered: where the compiler reduce-scatters, as many bytes over the links as
one all-reduce (Rajbhandari et al. 2020). Slices, on `replica`, hold the same pieces: between them
only gradients travel.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
WHOLE_BELOW = 2**16  # bytes: what is smaller saves nothing and costs a collective of its own


def piece_sharding(array: Any, sharding: NamedSharding) -> NamedSharding:
    """The layout of what an optimizer remembers of a parameter, and of its gradient.

    The parameter's own `sharding`, with the dimension whose parts are largest cut further, over
    `data`, if it divides. Small arrays, and those of which no dimension divides, lie like the
    parameter.

    Args:
      array: anything with the parameter's shape and dtype.
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
    """Lays out a traced tree like its optimizer state; `shardings` are those of the parameters."""
    return jax.lax.with_sharding_constraint(tree, pieces(tree, shardings))
