"""Prepares batches in a background thread, so that the devices do not wait for the host."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jax.sharding import Mesh

from onesug_jax.train import mesh as meshes
from onesug_jax.train.step import batch_size
from onesug_jax.train.train_state import Stage

DEPTH = 2
_POLL_SECONDS = 0.0005


class Prefetch:
    """Computes `make(step)` for the next steps, in order, in a background thread."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int):
        self._make, self._stop, self._next = make, stop, start
        self._waiting: deque[Future] = deque()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, step: int) -> Any:
        """The value for `step`, which must be the next one. Raises the error of `make`."""
        self._submit()
        return self._waiting.popleft().result()

    def wait_while(self, busy: Callable[[], bool]) -> None:
        """Wait until the next value is ready, or `busy()` is false."""
        self._submit()
        while not self._waiting[0].done() and busy():
            time.sleep(_POLL_SECONDS)

    def _submit(self) -> None:
        while len(self._waiting) <= DEPTH and self._next < self._stop:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1


def prepare_batch(
    stage: Stage, mesh: Mesh, local: Mapping[str, np.ndarray]
) -> tuple[int, int | None, str, Any]:
    """Puts this process's rows of a batch, arrays `[B_local, ...]`, on the devices.

    Returns:
      examples of the global batch, its tokens (estimated from this process's rows; None: not
      counted), its shapes as text, and the batch on the devices.
    """
    rows = batch_size(local)
    batch = meshes.global_batch(mesh, dict(local))
    size = batch_size(batch)
    tokens = None if stage.tokens_fn is None else int(stage.tokens_fn(local)) * size // rows
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sorted(batch.items()))
    return size, tokens, shapes, batch
