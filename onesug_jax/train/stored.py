"""Reads trees of arrays that orbax stored, and compares their names and shapes with a run's."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from onesug_jax.errors import UserError
from onesug_jax.train.mesh import path_name


def read_tree(home: epath.Path, like: Any) -> Any:
    """The tree stored in `home`, with the dtypes and shardings of `like` (`ShapeDtypeStruct`s)."""
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
      shardings: None returns numpy arrays; one sharding, or a tree of them, returns jax arrays.

    Raises:
      UserError: the tree of shardings has another structure.
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
    """{"encoder/mlp/kernel": leaf}, without containers."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def find_misfit(saved: Any, expected: Any) -> str:
    """The first arrays that differ in name or shape between two trees; "" if none does."""
    saved, expected = by_name(saved), by_name(expected)
    difference = _missing_or_surplus(saved, expected)
    for name in [] if difference else expected:
        found, shape = list(saved[name].shape), list(expected[name].shape)
        if found != shape:
            return f"{name}: expected shape {shape}, found {found}"
    return difference


def check_shapes(home: Any, saved: Any, expected: Any) -> None:
    """Raise a UserError with the first differences of stored and expected parameters."""
    misfit = find_misfit(saved, expected)
    if misfit:
        raise UserError(
            f"{home}: does not fit this model: {misfit}. Use the model's old settings, or another "
            "folder."
        )


def _missing_or_surplus(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    missing, surplus = sorted(set(expected) - set(saved)), sorted(set(saved) - set(expected))
    parts = [f"it has no {', '.join(missing[:3])} ({len(missing)} missing)"] if missing else []
    if surplus:
        parts.append(f"it also has {', '.join(surplus[:3])} ({len(surplus)} too many)")
    return "; ".join(parts)
