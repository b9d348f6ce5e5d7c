"""Trees of arrays as orbax stored them: reading them onto a mesh, and what differs from what a run
needs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from onesug_jax.errors import UserError
from onesug_jax.train.mesh import path_name


def read_tree(home: epath.Path, like: Any) -> Any:
    """The tree stored in `home`, laid out as the `ShapeDtypeStruct`s of `like` say."""
    args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        like,
    )
    return ocp.PyTreeCheckpointHandler().restore(
        home, args=ocp.args.PyTreeRestore(item=like, restore_args=args)
    )


def read_params(home: epath.Path, shardings: Any = None) -> Any:
    """The tree stored in `home`, of any structure.

    Args:
      shardings: None gives numpy arrays; one sharding for all, or a tree of them, gives jax arrays.

    Raises:
      UserError: the shardings' tree has another structure.
    """
    saved = stored_shapes(home)
    if shardings is None:
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    else:
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _: shardings, saved)
        difference = _missing_or_surplus(by_name(saved), by_name(shardings))
        if difference:
            raise UserError(f"{home}: does not fit the model: {difference}.")
        args = jax.tree.map(
            lambda _, sharding: ocp.ArrayRestoreArgs(sharding=sharding), saved, shardings
        )
    return ocp.PyTreeCheckpointHandler().restore(
        home, args=ocp.args.PyTreeRestore(restore_args=args)
    )


def stored_shapes(home: epath.Path) -> Any:
    """The tree stored in `home`, with orbax's metadata (shape, dtype) for arrays."""
    return ocp.PyTreeCheckpointHandler().metadata(home).tree


def by_name(tree: Any) -> dict[str, Any]:
    """{"encoder/mlp/kernel": leaf}: the leaves without the containers around them."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def find_misfit(saved: Any, wanted: Any) -> str:
    """The first arrays that differ in name or shape between two trees; "" where none does."""
    saved, wanted = by_name(saved), by_name(wanted)
    difference = _missing_or_surplus(saved, wanted)
    for name in [] if difference else wanted:
        there, here = list(saved[name].shape), list(wanted[name].shape)
        if there != here:
            return f"{name} is {there} there and {here} here"
    return difference


def check_shapes(home: Any, saved: Any, wanted: Any) -> None:
    """Raise a UserError naming the first arrays in which stored and wanted parameters differ."""
    misfit = find_misfit(saved, wanted)
    if misfit:
        raise UserError(
            f"{home}: does not fit this model: {misfit}. Give the model's old settings, or use "
            "another folder."
        )


def _missing_or_surplus(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    missing, surplus = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
    parts = [f"it has no {', '.join(missing[:3])} ({len(missing)} missing)"] if missing else []
    if surplus:
        parts.append(f"it has {', '.join(surplus[:3])} besides ({len(surplus)} too many)")
    return "; ".join(parts)
