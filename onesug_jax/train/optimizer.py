"""Learning-rate schedules, and the optimizers AdamW and Adafactor with clipping by global norm.

The optax parts are, in this order: clip, precondition, weight decay, learning rate. So the learning
rate scales the decay for both optimizers (decoupled, as in AdamW).
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from onesug_jax.errors import UserError

OPTIMIZERS = ("adamw", "adafactor")
DECAYS = ("rsqrt", "cosine", "linear", "none")
Schedule = Callable[[Any], jax.Array]


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation with its schedule, for the reported rate, and its settings, for the
    history.
    """

    schedule: Schedule
    settings: dict[str, Any]


def make_schedule(
    learning_rate: float,
    warmup_steps: float = 0,
    decay: str = "rsqrt",
    steps: int | None = None,
    floor: float = 0.0,
) -> Schedule:
    """Learning rate of update `t` (0-based).

    Warm-up: `learning_rate * (t + 1) / warmup_steps`; `warmup_steps` below 1 is a share of `steps`.
    After it, with W = warmup_steps, S = steps and p = (t - W) / (S - W), `learning_rate` times

        rsqrt    sqrt(max(W, 1) / max(t + 1, W, 1)), T5's      cosine   (1 + cos(pi * p)) / 2
        linear   1 - p                                         none     1

    and at least `floor * learning_rate`.

    Raises:
      UserError: an unknown decay, a number out of range, or cosine or linear decay without `steps`.
    """
    _check_choice("decay", decay, DECAYS)
    if learning_rate <= 0 or warmup_steps < 0 or not 0 <= floor <= 1:
        raise UserError(
            f"learning_rate={learning_rate}, warmup_steps={warmup_steps}, floor={floor}: expected "
            "a positive rate, a warm-up of at least 0 steps and a floor between 0 and 1."
        )
    if 0 < warmup_steps < 1 and steps is not None:
        warmup_steps = math.ceil(warmup_steps * steps) if steps > 1 else 0
    if decay in ("cosine", "linear") and (steps is None or steps <= warmup_steps):
        raise UserError(
            f"decay={decay!r} ends at the last step, so it needs steps > "
            f"warmup_steps={warmup_steps}; found steps={steps}."
        )

    last = steps or 0  # 0 is unused: cosine and linear require `steps`

    def schedule(t) -> jax.Array:
        t = jnp.asarray(t, jnp.float32)
        if decay == "rsqrt":
            shape = jnp.sqrt(max(warmup_steps, 1) / jnp.maximum(t + 1, max(warmup_steps, 1)))
        elif decay == "none":
            shape = jnp.ones_like(t)
        else:
            done = jnp.clip((t - warmup_steps) / (last - warmup_steps), 0, 1)
            shape = 1 - done if decay == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done))
        warm = jnp.minimum((t + 1) / max(warmup_steps, 1), 1)
        return learning_rate * jnp.where(t < warmup_steps, warm, jnp.maximum(shape, floor))

    return schedule


def make_optimizer(
    name: str = "adamw",
    learning_rate: float = 1e-3,
    warmup_steps: float = 0,
    decay: str = "rsqrt",
    steps: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    *,
    floor: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    average: float = 0.0,
) -> Optimizer:
    """The named optimizer with its schedule.

    `weight_decay` excludes vectors (norm scales, biases; see `decay_mask`). `clip_norm` None or 0
    disables clipping. `beta1`, `beta2`, `eps` are AdamW's. Adafactor has no momentum, factors
    dimensions from 128 on, clips updates at RMS 1, and scales the rate by each parameter's RMS
    (Shazeer and Stern, 2018). `average` above 0 is the decay of a moving average of the weights
    (`averaged`).

    Raises:
      UserError: an unknown name, or a number out of range.

    Examples:
      >>> from onesug_jax import make_optimizer
      >>> optimizer = make_optimizer("adamw", 0.5, warmup_steps=2, decay="none")
      >>> [float(optimizer.schedule(step)) for step in range(3)]
      [0.25, 0.5, 0.5]
    """
    _check_choice("optimizer", name, OPTIMIZERS)
    if weight_decay < 0 or (clip_norm or 0) < 0:
        raise UserError(
            f"weight_decay={weight_decay}, clip_norm={clip_norm}: expected numbers of at least 0."
        )
    if not 0 <= average < 1:
        raise UserError(f"average={average}: expected a decay of at least 0 and below 1.")
    schedule = make_schedule(learning_rate, warmup_steps, decay, steps, floor)
    settings = {
        "optimizer": name,
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "decay": decay,
        "floor": floor,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "average": average,
    }
    # A disabled part is replaced by the identity: checkpoints store the state of the parts by their
    # position.
    parts = [optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()]
    if name == "adamw":
        settings |= {"beta1": beta1, "beta2": beta2, "eps": eps}
        parts.append(optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps))
    else:
        factored = [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ]
        parts.append(optax.chain(*factored))
    parts.append(
        optax.add_decayed_weights(weight_decay, mask=decay_mask)
        if weight_decay
        else optax.identity()
    )
    parts.append(optax.scale_by_learning_rate(schedule))
    parts.append(average_weights(average) if average else optax.identity())
    optimizer = Optimizer(*optax.chain(*parts))
    optimizer.schedule, optimizer.settings = schedule, settings
    return optimizer


def set_schedule_step(opt_state: Any, step: int) -> Any:
    """The state with its learning-rate schedule at `step`, and with the same moments."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: (
            node._replace(count=jnp.full_like(node.count, step)) if is_schedule(node) else node
        ),
        opt_state,
        is_leaf=is_schedule,
    )


class WeightAverage(NamedTuple):
    """State of `average_weights`: the number of updates, and the average, a tree of parameters."""

    updates: jax.Array
    average: Any


def average_weights(decay: float) -> optax.GradientTransformation:
    """Averages the updated weights, and does not change the updates; the last part of a chain.

        average_t = d_t * average_(t-1) + (1 - d_t) * weights_t,    d_t = min(decay, t / (t + 9))

    with t = 0 at the first update, so that the early average forgets the initial weights.
    """

    def init(params: Any) -> WeightAverage:
        return WeightAverage(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: WeightAverage, params: Any = None):
        count = state.updates.astype(jnp.float32)
        share = jnp.minimum(decay, count / (count + 9))
        average = jax.tree.map(
            lambda old, weight, change: share * old + (1 - share) * (weight + change),
            state.average,
            params,
            updates,
        )
        return updates, WeightAverage(state.updates + 1, average)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any, params: Any) -> Any:
    """The optimizer's average of the weights, with the shardings of `params`; `params` itself if
    there is no average, or no update yet.
    """
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, WeightAverage))
    for part in parts:
        if isinstance(part, WeightAverage) and int(part.updates):
            layout = jax.tree.map(lambda leaf: leaf.sharding, params)
            return jax.device_put(part.average, layout)
    return params


def decay_mask(params: Any) -> Any:
    """True for arrays with weight decay: at least two dimensions, and no `scale` or `bias`.

    The name is necessary because scanned layers stack their vectors to `[layers, d]`.
    """

    def decays(path, leaf) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.ndim > 1 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)


def _check_choice(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{what} {name!r} is unknown; expected one of {', '.join(names)}.{hint}")
