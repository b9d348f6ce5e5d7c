"""One process's rows of every global batch, of an endless stream of examples.

Batch `step` of B rows is the stream's elements `[step * B, (step + 1) * B)`. A process reads the
rows that its devices hold (`train.mesh.process_batch_shard`) and nothing else, so batches are the
same however many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from onesug_jax.errors import UserError


def check_rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """The rows of a batch that a process reads, int64; None: all.

    Raises:
      UserError: no batch has this size, or no such rows.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: expected at least 1, found {batch_size}.")
    chosen = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= batch_size:
        raise UserError(
            f"process_rows: expected rows from 0 to {batch_size - 1} of a batch of {batch_size}, "
            f"found {chosen.tolist()}."
        )
    return chosen


def process_batches(
    stream: grain.MapDataset,
    batch_size: int,
    rows: np.ndarray,
    assemble: Callable[[list[Any]], Any],
) -> grain.MapDataset:
    """`assemble` of the elements at `rows` of every batch of the stream."""
    places = rows.tolist()

    def batch(step: int) -> Any:
        first = int(step) * batch_size
        return assemble([stream[first + row] for row in places])

    return grain.MapDataset.range(len(stream) // batch_size).map(batch)
