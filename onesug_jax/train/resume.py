"""Where a run begins: at the newest intact checkpoint, or at fresh parameters.

A checkpoint of the same identity is always gone on from, whatever else changed. Another optimizer
gets its parameters and begins its own state anew; its learning-rate schedule goes on at that step.
"""

import os
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from onesug_jax.train import mesh as meshes
from onesug_jax.train.checkpoint import Checkpoints, load_params
from onesug_jax.train.optimizer import set_schedule_step
from onesug_jax.train.stored import check_shapes
from onesug_jax.train.train_state import Stage, TrainState, init_state, shardings_of


@dataclass(frozen=True)
class Beginning:
    """The state a run begins with.

    Attributes:
      state: on the mesh.
      step: updates done; 0: fresh.
      notes: of the checkpoint, {} where there is none; "best" is of the parameters in `best/`.
      change: what of the checkpoint could not be taken over, in words; "" where all could.
    """

    state: TrainState
    step: int
    notes: dict[str, Any]
    change: str


def begin(
    checkpoints: Checkpoints,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    like: TrainState,
    seed: int,
    params_from: Any = None,
) -> Beginning:
    """The state to begin with.

    Args:
      like: `abstract_state(stage, optimizer, mesh)`.
      seed, params_from: of the initial parameters, where there is no checkpoint; as for `fit`.

    Raises:
      UserError: the checkpoint or `params_from` does not fit; nothing was touched.
    """
    found = checkpoints.restore(like)
    if found is None:
        initial = None if params_from is None else _initial_params(params_from, like.params)
        state = init_state(stage, optimizer, mesh, seed, initial)
        checkpoints.remove_best()  # of a run that never came to its first checkpoint
        return Beginning(state, 0, {}, "")
    state, change = found.state, ""
    if state.opt_state is None:
        change = "the optimizer's state starts anew (other arrays were stored)"
        init = jax.jit(
            lambda params: set_schedule_step(optimizer.init(params), found.step),
            out_shardings=shardings_of(like.opt_state),
        )
        state = state.replace(opt_state=init(state.params))
    # best/ may be newer than the checkpoint: a killed run was further.
    notes = {**found.notes, "best": checkpoints.best_notes().get("best")}
    return Beginning(state, found.step, notes, change)


def _initial_params(source: Any, like: Any) -> Any:
    """Parameters from a stage's folder, a tree or what makes one, laid out as this stage wants."""
    if isinstance(source, str | os.PathLike):
        params, where = load_params(source, shardings_of(like)), source
    else:
        params, where = meshes.unbox(source() if callable(source) else source), "params_from"
    check_shapes(where, params, like)
    return jax.tree.map(
        lambda leaf, want: jax.device_put(leaf.astype(want.dtype), want.sharding), params, like
    )
