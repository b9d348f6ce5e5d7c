"""What `fit` refuses before it touches anything: settings that cannot hold, alone or together.

Takes plain numbers, so that a command line can ask the same before any stage runs.
"""

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
    """Raise for the first setting with which `fit` could not train.

    Args:
      name: the stage's, for the message.
      batch_size: examples of an update, over all processes.
      mesh: sizes of the axes, as `dict(make_mesh(...).shape)` gives them.
      evaluate_every: 0 also where there is nothing to evaluate.
      profile_steps: (first, last) updates to trace, or None.

    Raises:
      UserError: names the setting, what was expected and what was found.
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
