"""Copies of a model on all devices of this host: each answers its rows of a batch.

A batch is split by row where the number of devices divides its size; a smaller one is answered by
the first device alone, so that a single request wakes no other. Devices exchange nothing: each runs
the program that one device would run for its rows.
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
    """Arrays that every device holds: `every` of all devices, `first` of the first one alone."""

    every: Any
    first: Any


class Replicas:
    """The devices of this host, which share the batches of one model."""

    def __init__(self) -> None:
        own = jax.process_index()
        devices = [device for device in jax.devices() if device.process_index == own]
        self._mesh = Mesh(np.array(devices), (_AXIS,)) if len(devices) > 1 else None
        self._count = len(devices)

    def __len__(self) -> int:
        return self._count

    def copied(self, tree: Any) -> Copies:
        """Arrays, copied to every device."""
        if self._mesh is None:
            tree = jax.tree.map(jax.numpy.asarray, tree)
            return Copies(tree, tree)
        every = jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))
        return Copies(every, jax.tree.map(lambda x: x.addressable_shards[0].data, every))

    def of(self, rows: int, *copies: Copies) -> tuple[Mesh | None, *tuple[Any, ...]]:
        """For a batch of so many rows: the mesh that it is split over, or None where the first
        device takes all of it; and the arrays of `copies` that lie there.
        """
        if self._mesh is None or rows % self._count:
            return None, *(one.first for one in copies)
        return self._mesh, *(one.every for one in copies)


def by_row(mesh: Mesh | None, run: Callable[[Any, Any], Any], shared: Any, rows: Any) -> Any:
    """`run(shared, rows)` on every device of the mesh, each with its part of `rows`; inside `jit`.

    Args:
      mesh: of `Replicas.of`; None: one device.
      run: its results have one row a request, too.
      shared: what all devices need. rows: arrays with one row a request.
    """
    if mesh is None:
        return run(shared, rows)
    whole, split = PartitionSpec(), PartitionSpec(_AXIS)
    over = jax.shard_map(run, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False)
    return over(shared, rows)


def parted(constraint: Any) -> tuple[Any, dict[str, Any]]:
    """What all requests share of a constraint of beams (`trie.Constraint`), and its arrays with one
    row a request, by name.
    """
    own = {name: getattr(constraint, name) for name in constraint.BY_ROW}
    return dataclasses.replace(constraint, **dict.fromkeys(own)), own
