"""The device mesh, and the one table that says which logical axis lies on which mesh axis.

Four mesh axes: `replica` (copies of the model on several TPU slices), `data` (copies within a
slice), `fsdp` (the model cut up, the batch too), `tensor` (heads and hidden units of one layer cut
up). Models name logical axes only; `LOGICAL_RULES` maps them. A process loads the rows of a batch
that its devices hold, wherever the torus put them. Does not know any model.
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
COPY_AXES = ("replica", "data")  # along which parameters are the same
BATCH_AXES = (*COPY_AXES, "fsdp")

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
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    replica: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Lay the devices out as `[replica, data, fsdp, tensor]`, near neighbours on the inner axes.

    Args:
      data, fsdp, tensor: sizes of the axes; one of them may be -1, "what is left".
      replica: copies of the model over the network between TPU slices; None: one a slice.
      devices: default all devices of all processes; a topology's devices serve to compile ahead.

    Raises:
      UserError: the sizes do not use up the devices exactly, or an axis other than `replica` would
        reach over several slices.

    Examples:
      >>> import jax
      >>> from onesug_jax import make_mesh
      >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
      {'replica': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = list(devices or jax.devices())
    slices = _slices(devices)
    replica = slices if replica is None else replica
    asked = dict(zip(AXES, (replica, data, fsdp, tensor), strict=True))
    words = "mesh " + ", ".join(f"{name}={size}" for name, size in asked.items())
    open_axes = [name for name, size in asked.items() if size == -1]
    wrong = [name for name, size in asked.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise UserError(
            f"{words}: every axis must be a positive number, and at most one of them -1 (what is "
            "left)."
        )
    fixed = math.prod(size for size in asked.values() if size != -1)
    if len(devices) % fixed or (not open_axes and fixed != len(devices)):
        must = "divide" if open_axes else "equal"
        raise UserError(
            f"{words}: the product {fixed} does not {must} the {len(devices)} "
            f"{devices[0].platform} device(s) here; choose axes whose product is {len(devices)}."
        )
    shape = [len(devices) // fixed if size == -1 else size for size in asked.values()]
    if shape[0] % slices:
        raise UserError(
            f"{words}: the devices are {slices} slices, so replica must be a multiple of {slices}: "
            "no other axis may reach from slice to slice."
        )
    # An axis of eight on a torus of 4 x 4 x 4 chips takes one of its sides and half of another.
    shape[0] //= slices
    if slices == 1:
        laid_out = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        laid_out = create_hybrid_device_mesh(
            shape, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[Any]) -> int:
    """How many TPU slices the devices lie in; elsewhere 1."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


@contextlib.contextmanager
def rules_context(mesh: Mesh, batch: tuple[str, ...] = BATCH_AXES) -> Iterator[None]:
    """Inside, `nn.with_logical_constraint` means this mesh, and "batch" these axes of it. Works
    inside a traced function too.
    """
    rules = (("batch", batch), *LOGICAL_RULES)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, the same on every device."""
    return jax.device_put(tree, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (dimension 0) over all axes but `tensor`; every array of a batch is laid out so."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def divisible_batch(mesh: Mesh, at_least: int) -> int:
    """The smallest batch of at least so many examples that divides over the mesh."""
    parts = batch_shards(mesh)
    return -(-at_least // parts) * parts


def unbox(tree: Any) -> Any:
    """The tree without Flax's axis-name boxes."""
    return nn.unbox(tree)


def on_host(tree: Any) -> Any:
    """Whole numpy arrays in every process, of arrays that lie on a mesh or on this process's
    devices.
    """
    shardings: list[Any] = [x.sharding for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    elsewhere = [sharding for sharding in shardings if not sharding.is_fully_addressable]
    if elsewhere:
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(elsewhere[0].mesh))(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)
    return jax.tree.map(np.asarray, tree)


def path_name(path: Sequence[Any]) -> str:
    """A tree path as people write it: `encoder/mlp/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def process_batch_shard(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """The rows of every global batch that a process's devices hold, int64 `[B_local]`, ascending.

    They need not be neighbours: devices lie along the torus, processes own blocks of it. Processes
    that hold the same examples (a `tensor` axis across hosts) get the same rows.

    Args:
      process: one that has devices in the mesh; None: this one.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    check_divides(mesh.shape, batch_size, "batch")
    held = _held_shards(mesh)[jax.process_index() if process is None else process]
    size = batch_size // batch_shards(mesh)
    return (np.array(held, np.int64)[:, None] * size + np.arange(size)).ravel()


@functools.lru_cache(maxsize=8)
def _held_shards(mesh: Mesh) -> dict[int, list[int]]:
    """Process -> numbers of the parts of a batch that lie on its devices, ascending."""
    cuts: Any = batch_sharding(mesh).devices_indices_map((batch_shards(mesh),))
    held: dict[int, set[int]] = {}
    for device, (cut,) in cuts.items():
        held.setdefault(device.process_index, set()).add(cut.start or 0)
    return {process: sorted(shards) for process, shards in held.items()}


def check_divides(
    mesh: Mapping[str, int], size: int, what: str, accumulation: int | None = None
) -> None:
    """Whether `size` examples divide over a mesh of these axes, in so many microbatches.

    Raises:
      UserError: names `what`, the sizes, and the nearest batch sizes that divide.
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
    """The sharded batch `[B, ...]` of which every process has its rows, `[B_local, ...]`, in the
    order of `process_batch_shard`.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    sharding, parts = batch_sharding(mesh), batch_shards(mesh)
    place = {shard: i for i, shard in enumerate(_held_shards(mesh)[jax.process_index()])}

    def put(path, local):
        local = np.asarray(local)
        size = local.shape[0] * parts // len(place) if local.ndim else 0
        check_divides(mesh.shape, size, f"batch array {path_name(path)!r}")
        rows = size // parts

        def shard(index: Any) -> np.ndarray:
            first = place[(index[0].start or 0) // rows] * rows
            return local[first : first + rows]

        return jax.make_array_from_callback((size, *local.shape[1:]), sharding, shard)

    return jax.tree_util.tree_map_with_path(put, host_local_batch)
