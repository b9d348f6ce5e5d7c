"""The end of a run whose loss or gradient is not finite: the batch is saved for looking at."""

import os
from collections.abc import Callable

import jax
import numpy as np

from onesug_jax.errors import UserError


class NonFiniteLoss(UserError):
    """The loss or the gradient was not finite; the checkpoints hold good states only."""


def save_batch_and_raise(
    name: str, batch_at: Callable, step: int, folder: str | os.PathLike
) -> None:
    """Write batch `step` into `folder`, and raise `NonFiniteLoss`."""
    suffix = f".process{jax.process_index()}" if jax.process_count() > 1 else ""
    path = os.path.join(folder, f"nonfinite_batch_{step}{suffix}.npz")
    np.savez(path, **batch_at(step))
    raise NonFiniteLoss(
        f"{name}: the loss or gradient of update {step + 1} (batch {step}) is not finite. "
        f"That batch: {path}. The checkpoints hold good states only. Lower the learning rate, clip "
        "harder, or look at the batch, then start again."
    )
