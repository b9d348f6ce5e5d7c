"""The device mesh, and the one table that says which logical axis lies on which mesh axis.

Three mesh axes: `data` (copies of the model), `fsdp` (the model cut up, the batch too), `tensor`
(heads and hidden units of one layer cut up). Models name logical axes only; `LOGICAL_RULES` maps
them. Works alike on CPU, GPU and TPU, on one host or many. Does not know any model.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Earlier rows win where two logical axes of one array ask for the same mesh axis.
LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("embed", "fsdp"),
    ("length", None),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("soft", None),
    ("relations", None),
    ("features", None),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Lay the devices out as `[data, fsdp, tensor]`, near neighbours on the inner axes.

    Args:
      data, fsdp, tensor: sizes of the axes; one of them may be -1, "what is left".
      devices: default all devices of all processes; a topology's devices serve to compile ahead.

    Raises:
      UserError: the sizes do not use up the devices exactly.

    >>> import jax
    >>> from onesug_jax import make_mesh
    >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    asked = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    told = "mesh " + ", ".join(f"{name}={size}" for name, size in asked.items())
    open_axes = [name for name, size in asked.items() if size == -1]
    wrong = [name for name, size in asked.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise UserError(
            f"{told}: every axis must be a positive number, and at most one of them -1 (what is "
            "left)."
        )
    fixed = math.prod(size for size in asked.values() if size != -1)
    if len(devices) % fixed or (not open_axes and fixed != len(devices)):
        must = "divide" if open_axes else "equal"
        raise UserError(
            f"{told}: the product {fixed} does not {must} the {len(devices)} "
            f"{devices[0].platform} device(s) here; choose axes whose product is {len(devices)}."
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in asked.values())
    # An axis of eight on a torus of 4 x 4 x 4 chips takes one of its sides and half of another.
    laid_out = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def rules_context(mesh: Mesh) -> Iterator[None]:
    """Inside, `nn.with_logical_constraint` means this mesh. Works inside a traced function too."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, the same on every device."""
    return jax.device_put(tree, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (dimension 0) over `data` and `fsdp`; every array of a batch is laid out so."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def unbox(tree: Any) -> Any:
    """The tree without Flax's axis-name boxes."""
    return nn.unbox(tree)


def param_shardings(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of parameters from the logical axis names on their boxes.

    Args:
      abstract_boxed: arrays or `ShapeDtypeStruct`s, in `LogicallyPartitioned` boxes where they have
        axis names (as `jax.eval_shape(module.init, ...)` gives them); a leaf without a box is
        replicated.

    Returns:
      The unboxed tree's structure, a `NamedSharding` a leaf.

    Raises:
      UserError: a dimension does not divide over its mesh axis.
      ValueError: a box names an axis that `LOGICAL_RULES` does not hold.
    """
    logical = nn.get_partition_spec(abstract_boxed)
    known = {name for name, _ in LOGICAL_RULES}

    def place(path, names: P, leaf: Any) -> NamedSharding:
        shape = leaf.shape
        unknown = [name for name in names if name is not None and name not in known]
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


def on_host(tree: Any) -> Any:
    """Whole numpy arrays in every process, of arrays that lie on a mesh or on this process's
    devices.
    """
    shardings: list[Any] = [x.sharding for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    apart = [sharding for sharding in shardings if not sharding.is_fully_addressable]
    if apart:
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(apart[0].mesh))(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)
    return jax.tree.map(np.asarray, tree)


def path_name(path: Sequence[Any]) -> str:
    """A tree path as people write it: `encoder/mlp/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of every global batch this process reads: `(index, count)`.

    Processes that hold the same examples (a `tensor` axis across hosts) get the same index.

    Raises:
      UserError: this process's devices hold parts that are not neighbours.
    """
    parts = batch_shards(mesh)
    places: Any = batch_sharding(mesh).devices_indices_map((parts,))
    here = jax.process_index()
    held = sorted({(cut.start or 0) for d, (cut,) in places.items() if d.process_index == here})
    if not held or parts % len(held) or held != list(range(held[0], held[0] + len(held))):
        raise UserError(
            f"mesh {dict(mesh.shape)}: process {here} holds parts {held} of {parts} of the batch, "
            "which is not one contiguous share; choose data*fsdp a multiple or a divisor of the "
            "process count."
        )
    return held[0] // len(held), parts // len(held)


def check_batch(mesh: Mesh, size: int, what: str) -> None:
    """Raises UserError, which names `what`, where `size` examples do not divide over the mesh."""
    parts = batch_shards(mesh)
    if size == 0 or size % parts:
        raise UserError(
            f"{what}: {size} examples do not divide over mesh axes data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} = {parts}; choose a batch size that is a multiple of "
            f"{parts}."
        )


def global_batch(mesh: Mesh, host_local_batch: Any) -> Any:
    """Put every process's part `[B_local, ...]` together to one sharded batch `[B, ...]`.

    Raises:
      UserError: the batch does not divide over `data * fsdp`.
    """
    _, count = batch_part(mesh)
    sharding = batch_sharding(mesh)

    def put(path, local):
        local = np.asarray(local)
        size = local.shape[0] * count if local.ndim else 0
        check_batch(mesh, size, f"batch array {path_name(path)!r}")
        return jax.make_array_from_process_local_data(sharding, local, (size, *local.shape[1:]))

    return jax.tree_util.tree_map_with_path(put, host_local_batch)
