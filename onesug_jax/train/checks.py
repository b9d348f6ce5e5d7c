"""Validation of the settings of `fit`; the command line runs it before any stage."""

from collections.abc import Mapping
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.train.mesh import check_divides


def check_fit(
    name: str,
    *,
    steps: int,
    batch_size: int,
    mesh: Mapping[str, int],
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 500,
    keep: int = 2,
    evaluate_every: int = 0,
    best_metric: str | None = None,
    profile_steps: Any = None,
) -> None:
    """Check the settings of `fit`.

    Args:
      name: the stage's name, for the message.
      batch_size: examples of an update, over all processes.
      mesh: sizes of the axes, `dict(make_mesh(...).shape)`.
      evaluate_every: 0 also if there is no evaluation function.
      profile_steps: (first, last) updates to trace, or None.

    Raises:
      UserError: names the first wrong setting, the expected and the found value.
    """
    least = {
        "steps": (steps, 1),
        "batch_size": (batch_size, 1),
        "accumulation": (accumulation, 1),
        "log_every": (log_every, 1),
        "checkpoint_every": (checkpoint_every, 1),
        "keep": (keep, 1),
        "evaluate_every": (evaluate_every, 0),
    }
    for setting, (value, lowest) in least.items():
        if value < lowest:
            raise UserError(f"{name}: {setting}={value}: expected at least {lowest}.")
    if best_metric and not evaluate_every:
        raise UserError(f"{name}: best_metric={best_metric!r} needs evaluate_every, an evaluation.")
    match profile_steps:
        case None:
            pass
        case [int(first), int(last)] if 1 <= first <= min(last, steps):
            pass
        case _:
            raise UserError(
                f"{name}: profile_steps={profile_steps}: expected (first, last) with 1 <= first <= "
                f"last, and first at most {steps}, the number of steps."
            )
    check_divides(mesh, batch_size, f"{name}.batch_size", accumulation)
