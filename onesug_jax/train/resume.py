"""The state that a run begins with: the newest intact checkpoint, or initial parameters.

A run always resumes from a checkpoint of the same identity, even if other settings changed. Another
optimizer uses its parameters with a new optimizer state, and its schedule continues at that step.
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
    """The state that a run begins with.

    Attributes:
      state: on the mesh.
      step: completed updates; 0 without a checkpoint.
      notes: of the checkpoint, or {}; "best" describes the parameters in `best/`.
      change: the part of the checkpoint that could not be restored, as text; or "".
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
      seed, params_from: of the initial parameters if there is no checkpoint; see `fit`.

    Raises:
      UserError: the checkpoint or `params_from` does not fit; no file was changed.
    """
    restored = checkpoints.restore(like)
    if restored is None:
        initial = None if params_from is None else _initial_params(params_from, like.params)
        state = init_state(stage, optimizer, mesh, seed, initial)
        checkpoints.remove_best()  # of a run that ended before its first checkpoint
        return Beginning(state, 0, {}, "")
    state, change = restored.state, ""
    if state.opt_state is None:
        change = "the optimizer state is new (the checkpoint has that of another optimizer)"
        init = jax.jit(
            lambda params: set_schedule_step(optimizer.init(params), restored.step),
            out_shardings=shardings_of(like.opt_state),
        )
        state = state.replace(opt_state=init(state.params))
    # A run that was killed after its last checkpoint may have saved a newer best/.
    notes = {**restored.notes, "best": checkpoints.best_notes().get("best")}
    return Beginning(state, restored.step, notes, change)


def _initial_params(source: Any, like: Any) -> Any:
    """Parameters from a stage's folder, a tree, or a function, with the layout of `like`."""
    if isinstance(source, str | os.PathLike):
        params, where = load_params(source, shardings_of(like)), source
    else:
        params, where = meshes.unbox(source() if callable(source) else source), "params_from"
    check_shapes(where, params, like)
    return jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf.astype(spec.dtype), spec.sharding), params, like
    )
