"""A stage, and the state of its training: shapes, shardings, initial values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from onesug_jax.train import mesh as meshes
from onesug_jax.train.layout import param_shardings
from onesug_jax.train.zero import piece_sharding

Params = Any
Batch = Any
Sums = dict[str, jax.Array]


@dataclass(frozen=True)
class Stage:
    """One trainable step of the method, as data.

    Attributes:
      name: for reports.
      init_fn: key -> the tree of trainable arrays, with or without Flax's axis-name boxes; unboxed,
        it is the `params` of `loss_fn`.
      loss_fn: (params, batch, key) -> (sum of losses, sum of weights, {metric: sum}). Sums over
        examples, so that microbatches and devices add up. `frozen`, if any, is the fourth argument.
      tokens_fn: host batch -> its number of tokens, for tokens/s.
      frozen: constant arrays for the loss (a reference policy), with their shardings.
      rows_add_up: whether a row's loss is independent of the other rows of its batch, so that each
        copy of the parameters may sum its own rows, with its own key.
      after_update: (params, sums, key) -> params, for parameters without gradients (running
        codebooks); `sums` are those of the global batch. Only scalar sums are reported.
    """

    name: str
    init_fn: Callable[[jax.Array], Any]
    loss_fn: Callable[..., tuple[jax.Array, jax.Array, Sums]]
    tokens_fn: Callable[[Batch], int] | None = None
    frozen: Any = None
    rows_add_up: bool = False
    after_update: Callable[[Params, Sums, jax.Array], Params] | None = None


@flax.struct.dataclass
class TrainState:
    """The input and output of an update.

    Attributes:
      step: int32 scalar, completed updates; the next one uses batch `step`.
      params: the stage's arrays, without boxes.
      opt_state: optax's.
      bad_step: int32 scalar, the first batch whose loss or gradient was not finite; -1: none. Once
        it is set, the state does not change.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    bad_step: jax.Array


def abstract_state(stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings (`ShapeDtypeStruct`) of the state; nothing is computed.

    Raises:
      UserError: a parameter does not divide over the mesh.
    """
    boxed = jax.eval_shape(stage.init_fn, jax.random.key(0))
    shardings = param_shardings(boxed, mesh)
    params = jax.tree.map(_placed, meshes.unbox(boxed), shardings)
    everywhere = meshes.replicated(mesh)
    # Moments have more shards than their parameter (`zero.py`). Factored statistics have another
    # shape and are small, so they are replicated.
    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, param: _placed(
            leaf,
            piece_sharding(param, param.sharding) if leaf.shape == param.shape else everywhere,
        ),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: _placed(leaf, everywhere),
    )
    scalar: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(scalar, params, opt_state, scalar)


def shardings_of(tree: Any) -> Any:
    """The sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def init_state(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """An initial state, computed on the mesh; the same numbers on every mesh.

    Args:
      seed: of the initial parameters.
      params: initial parameters instead, with the shardings of `abstract_state(...).params`.
    """
    shardings = shardings_of(abstract_state(stage, optimizer, mesh))

    def build(key, params):
        if params is None:
            with meshes.rules_context(mesh):
                params = meshes.unbox(stage.init_fn(key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, optimizer.init(params), zero - 1)

    # The keys of updates differ: they fold in a step number.
    return jax.jit(build, out_shardings=shardings)(jax.random.key(seed), params)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
