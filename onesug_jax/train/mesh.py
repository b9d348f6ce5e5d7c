"""The device mesh, and the one table that maps logical axes to mesh axes.

Four mesh axes: `replica` (copies of the model on several TPU slices), `data` (copies within a
slice), `fsdp` (shards of the model and of the batch), `tensor` (shards of the heads and hidden
units of a layer). Models name only logical axes; `LOGICAL_RULES` maps them. A process loads the
rows of a batch that its devices hold, at any position of the torus.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor")
COPY_AXES = ("replica", "data")  # parameters are replicated along these
BATCH_AXES = (*COPY_AXES, "fsdp")

# If two logical axes of one array map to the same mesh axis, the earlier row has priority.
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
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    replica: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arrange the devices as `[replica, data, fsdp, tensor]`, near neighbours on the inner axes.

    Args:
      data, fsdp, tensor: sizes of the axes; one of them may be -1, for the remaining devices.
      replica: copies of the model, connected by the network between TPU slices; None: one per
        slice.
      devices: default all devices of all processes; a topology's devices for compiling ahead.

    Raises:
      UserError: the product of the sizes is not the number of devices, or an axis other than
        `replica` would extend over several slices.

    Examples:
      >>> import jax
      >>> from onesug_jax import make_mesh
      >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
      {'replica': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = list(devices or jax.devices())
    slices = _slices(devices)
    replica = slices if replica is None else replica
    sizes = dict(zip(AXES, (replica, data, fsdp, tensor), strict=True))
    words = "mesh " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise UserError(
            f"{words}: every axis must be a positive number, and at most one of them -1 (the "
            "remaining devices)."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (not open_axes and fixed != len(devices)):
        must = "divide" if open_axes else "equal"
        raise UserError(
            f"{words}: the product {fixed} does not {must} the {len(devices)} "
            f"{devices[0].platform} device(s) here; choose axes whose product is {len(devices)}."
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes.values()]
    if shape[0] % slices:
        raise UserError(
            f"{words}: the devices are {slices} slices, so replica must be a multiple of {slices}: "
            "no other axis may extend over several slices."
        )
    # Splitting: an axis of eight on a 4 x 4 x 4 torus takes one side and half of another.
    shape[0] //= slices
    if slices == 1:
        array = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = create_hybrid_device_mesh(
            shape, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices of the devices; 1 on other platforms."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


@contextlib.contextmanager
def rules_context(mesh: Mesh, batch: tuple[str, ...] = BATCH_AXES) -> Iterator[None]:
    """Inside, `nn.with_logical_constraint` uses this mesh, and these axes for "batch". Also for use
    in a traced function.
    """
    rules = (("batch", batch), *LOGICAL_RULES)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, copied to every device."""
    return jax.device_put(tree, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays: examples (dimension 0) over all axes but `tensor`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def divisible_batch(mesh: Mesh, at_least: int) -> int:
    """The smallest batch size that divides over the mesh and is at least this."""
    parts = batch_shards(mesh)
    return -(-at_least // parts) * parts


def unbox(tree: Any) -> Any:
    """The tree without Flax's axis-name boxes."""
    return nn.unbox(tree)


def on_host(tree: Any) -> Any:
    """Complete numpy arrays in every process, from arrays on a mesh or on local devices."""
    shardings: list[Any] = [x.sharding for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    remote = [sharding for sharding in shardings if not sharding.is_fully_addressable]
    if remote:
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(remote[0].mesh))(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)
    return jax.tree.map(np.asarray, tree)


def path_name(path: Sequence[Any]) -> str:
    """A tree path as text: `encoder/mlp/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def process_batch_shard(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """The rows of every global batch that a process's devices hold, int64 `[B_local]`, ascending.

    They need not be contiguous: the mesh follows the torus, and a process owns a block of it.
    Processes that hold the same examples (a `tensor` axis across hosts) get the same rows.

    Args:
      process: a process with devices in the mesh; None: this one.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    check_divides(mesh.shape, batch_size, "batch")
    held = _held_shards(mesh)[jax.process_index() if process is None else process]
    size = batch_size // batch_shards(mesh)
    return (np.array(held, np.int64)[:, None] * size + np.arange(size)).ravel()


@functools.lru_cache(maxsize=8)
def _held_shards(mesh: Mesh) -> dict[int, list[int]]:
    """Process -> numbers of the batch shards on its devices, ascending."""
    indices: Any = batch_sharding(mesh).devices_indices_map((batch_shards(mesh),))
    held: dict[int, set[int]] = {}
    for device, (index,) in indices.items():
        held.setdefault(device.process_index, set()).add(index.start or 0)
    return {process: sorted(shards) for process, shards in held.items()}


def check_divides(
    mesh: Mapping[str, int], size: int, what: str, accumulation: int | None = None
) -> None:
    """Checks that `size` examples divide over a mesh of these axes, in `accumulation` microbatches.

    Raises:
      UserError: with `what`, the sizes, and the nearest batch sizes that divide.
    """
    parts = math.prod(mesh[axis] for axis in BATCH_AXES)
    unit = parts * (accumulation or 1)
    if size > 0 and size % unit == 0:
        return
    axes = " x ".join(f"{axis}={mesh[axis]}" for axis in BATCH_AXES) + f" = {parts}"
    below = max(size - size % unit, unit)
    microbatches = "" if accumulation is None else f" in accumulation={accumulation} microbatch(es)"
    raise UserError(
        f"{what}: {size} examples do not divide over mesh axes {axes}{microbatches}; choose a "
        f"multiple of {unit}, such as {below} or {below + unit}, or another mesh."
    )


def global_batch(mesh: Mesh, host_local_batch: Any) -> Any:
    """The sharded batch `[B, ...]` from this process's rows `[B_local, ...]`, in the order of
    `process_batch_shard`.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    sharding, parts = batch_sharding(mesh), batch_shards(mesh)
    position = {shard: i for i, shard in enumerate(_held_shards(mesh)[jax.process_index()])}

    def put(path, local):
        local = np.asarray(local)
        size = local.shape[0] * parts // len(position) if local.ndim else 0
        check_divides(mesh.shape, size, f"batch array {path_name(path)!r}")
        rows = size // parts

        def shard(index: Any) -> np.ndarray:
            first = position[(index[0].start or 0) // rows] * rows
            return local[first : first + rows]

        return jax.make_array_from_callback((size, *local.shape[1:]), sharding, shard)

    return jax.tree_util.tree_map_with_path(put, host_local_batch)
