"""Stops a run whose loss or gradient is not finite, and saves the batch for inspection."""

import os
from collections.abc import Callable

import jax
import numpy as np

from onesug_jax.errors import UserError


class NonFiniteLoss(UserError):
    """The loss or the gradient was not finite; all checkpoints are from before."""


def save_batch_and_raise(
    name: str, batch_at: Callable, step: int, folder: str | os.PathLike
) -> None:
    """Write batch `step` into `folder`, and raise `NonFiniteLoss`."""
    suffix = f".process{jax.process_index()}" if jax.process_count() > 1 else ""
    path = os.path.join(folder, f"nonfinite_batch_{step}{suffix}.npz")
    np.savez(path, **batch_at(step))
    raise NonFiniteLoss(
        f"{name}: the loss or gradient of update {step + 1} (batch {step}) is not finite. "
        f"That batch: {path}. All checkpoints are from before it. Lower the learning rate or the "
        "clipping norm, or inspect the batch, then start again."
    )
