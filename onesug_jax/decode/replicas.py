"""Copies of a model on all devices of this host: each device computes its rows of a batch.

A batch is split by row if the number of devices divides its size. Any other batch runs on the first
device only, so that a single request does not occupy the others. Devices exchange no data: each one
runs the single-device program on its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "replica"


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of arrays: `every` lies on all devices, `first` on the first device only."""

    every: Any
    first: Any


class Replicas:
    """The devices of this host, which share the batches of one model."""

    def __init__(self) -> None:
        devices = jax.local_devices()
        self._mesh = Mesh(np.array(devices), (_AXIS,)) if len(devices) > 1 else None
        self._count = len(devices)

    def __len__(self) -> int:
        return self._count

    def copied(self, tree: Any) -> Copies:
        """Copies the arrays to every device."""
        if self._mesh is None:
            tree = jax.tree.map(jax.numpy.asarray, tree)
            return Copies(tree, tree)
        every = jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))
        return Copies(every, jax.tree.map(lambda x: x.addressable_shards[0].data, every))

    def of(self, rows: int, *copies: Copies) -> tuple[Mesh | None, *tuple[Any, ...]]:
        """The mesh of a batch of so many rows, or None if it runs on the first device; and the
        arrays of `copies` that lie there.
        """
        if self._mesh is None or rows % self._count:
            return None, *(arrays.first for arrays in copies)
        return self._mesh, *(arrays.every for arrays in copies)


def by_row(mesh: Mesh | None, run: Callable[[Any, Any], Any], shared: Any, rows: Any) -> Any:
    """`run(shared, rows)` on every device of the mesh, each with its part of `rows`; inside `jit`.

    Args:
      mesh: from `Replicas.of`; None: one device.
      run: its results have one row per request.
      shared: arrays for all devices. rows: arrays with one row per request.
    """
    if mesh is None:
        return run(shared, rows)
    same, split = PartitionSpec(), PartitionSpec(_AXIS)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(same, split), out_specs=split, check_vma=False)
    return mapped(shared, rows)


def split_constraint(constraint: Any) -> tuple[Any, dict[str, Any]]:
    """A `trie.Constraint` without its arrays of one row per request, and those arrays by name."""
    by_request = {name: getattr(constraint, name) for name in constraint.BY_ROW}
    return dataclasses.replace(constraint, **dict.fromkeys(by_request)), by_request
