"""The rows of every global batch that one process reads from an endless stream of examples.

Batch `step` of B rows has elements `[step * B, (step + 1) * B)` of the stream. A process reads only
the rows of its devices (`train.mesh.process_batch_shard`), so the global batches do not depend on
the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from onesug_jax.errors import UserError


def check_rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """The rows of a batch that a process reads, int64; all if `rows` is None.

    Raises:
      UserError: a batch size below 1, no rows, or rows outside the batch.
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
    rows_of_batch = rows.tolist()

    def batch(step: int) -> Any:
        first = int(step) * batch_size
        return assemble([stream[first + row] for row in rows_of_batch])

    return grain.MapDataset.range(len(stream) // batch_size).map(batch)
