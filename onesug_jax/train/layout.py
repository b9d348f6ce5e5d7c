"""The sharding of every parameter, from the names of its axes (`mesh.LOGICAL_RULES`)."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError
from onesug_jax.train.mesh import LOGICAL_RULES, path_name, unbox


def param_shardings(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of parameters from the logical axis names on their boxes.

    Args:
      abstract_boxed: arrays or `ShapeDtypeStruct`s, such as `jax.eval_shape(module.init, ...)`. A
        `LogicallyPartitioned` box has the axis names; a leaf without a box is replicated.

    Returns:
      a tree of `NamedSharding`s with the structure of the unboxed tree.

    Raises:
      UserError: a dimension does not divide over its mesh axis.
      ValueError: `LOGICAL_RULES` does not contain a box's axis.
    """
    logical = nn.get_partition_spec(abstract_boxed)
    logical_names = {name for name, _ in LOGICAL_RULES}

    def place(path, names: P, leaf: Any) -> NamedSharding:
        shape = leaf.shape
        unknown = [name for name in names if name is not None and name not in logical_names]
        if unknown:
            raise ValueError(
                f"{path_name(path)}: logical axis {unknown[0]!r} is not in LOGICAL_RULES."
            )
        spec = nn.logical_to_mesh_axes(tuple(names), LOGICAL_RULES) or P()
        for dimension, (name, axes) in enumerate(zip(names, spec, strict=True)):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if shape[dimension] % parts:
                raise UserError(
                    f"parameter {path_name(path)} {list(shape)}: dimension {dimension} ({name!r}, "
                    f"{shape[dimension]}) does not divide over mesh axis {'x'.join(axes)}={parts}; "
                    f"choose a mesh size that divides {shape[dimension]}, or change the model's "
                    "size."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        place, logical, unbox(abstract_boxed), is_leaf=lambda leaf: isinstance(leaf, P)
    )
