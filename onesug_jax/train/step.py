"""The jitted update of every stage.

It sums loss and weight over the batch (optionally in microbatches), divides once by the total
weight, and applies the optimizer. A non-finite loss or gradient is not applied: the state remains
the last good one and records the batch. This happens on the device, so the host does not wait for
the loss in every step.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError
from onesug_jax.train import mesh as meshes
from onesug_jax.train.train_state import Batch, Stage, TrainState, abstract_state, shardings_of
from onesug_jax.train.zero import in_pieces, pieces


def make_train_step(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    accumulation: int = 1,
    seed: int = 0,
    compiler_options: Mapping[str, Any] | None = None,
):
    """The jitted update `(state, batch, stage.frozen) -> (state, metrics)`; it donates the state.

    Args:
      accumulation: sequential microbatches of a batch `[B, ...]`; the result is the same up to
        rounding. If `stage.rows_add_up`, gradients are summed over `replica` and `data` once, at
        the end; otherwise, and over `fsdp`, once per microbatch.
      seed: the key of update t, microbatch m is `fold_in(fold_in(key(seed), t), m)`, split over the
        copies of the parameters if each copy sums its own rows.
      compiler_options: XLA's, see `compiler.compiler_options`.

    Returns:
      a `jax.jit` function (with `.lower` for compiling ahead). Metrics are float32 scalars: `loss`
      (per unit of weight), `weight`, `grad_norm` (before clipping), `learning_rate` if the
      optimizer has a `schedule`, and every scalar sum of the loss function divided by the weight.

    Raises:
      UserError: while tracing, if a batch does not divide into the microbatches and the mesh.
    """
    if accumulation < 1:
        raise UserError(f"accumulation={accumulation}: expected at least 1 microbatch.")
    state_shardings = shardings_of(abstract_state(stage, optimizer, mesh))
    # The sums of these copies of the parameters stay separate until the end of the update: all
    # microbatches need one sum over devices, and slices exchange only shards of the gradient.
    axes = meshes.COPY_AXES if accumulation > 1 else ("replica",)
    copies = math.prod(mesh.shape[axis] for axis in axes) if stage.rows_add_up else 1

    def sums(params, batch, key, frozen):
        extra = () if stage.frozen is None else (frozen,)

        def loss(params):
            total, weight, metrics = stage.loss_fn(params, batch, key, *extra)
            return total.astype(jnp.float32), (jnp.asarray(weight, jnp.float32), metrics)

        (total, (weight, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return total, weight, metrics, grads

    def microbatch_sums(params, batch, key, frozen):
        """`sums`; for batches `[copies, rows, ...]` those of each copy, `[copies, ...]`."""
        layout = pieces(params, state_shardings.params)
        if copies == 1:
            *scalars, grads = sums(params, batch, key, frozen)
        else:
            keys, others = jax.random.split(key, copies), meshes.BATCH_AXES[len(axes) :]
            with meshes.rules_context(mesh, others):
                each = jax.vmap(sums, (None, 0, 0, None), spmd_axis_name=axes)
                *scalars, grads = each(params, batch, keys, frozen)
            inside = layout if "data" not in axes else state_shardings.params
            layout = jax.tree.map(lambda own: NamedSharding(mesh, P(axes, *own.spec)), inside)
        # Immediately, so that a device holds only the shard of the sum that it updates.
        return *scalars, jax.lax.with_sharding_constraint(grads, layout)

    def batch_sums(params, batch, key, frozen):
        microbatches = _split(batch, accumulation, mesh, axes if copies > 1 else ())
        first = jax.tree.map(lambda x: x[0], microbatches)

        def add(running, numbered):
            number, microbatch = numbered
            new = microbatch_sums(params, microbatch, jax.random.fold_in(key, number), frozen)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), running, new), None

        if accumulation == 1:
            total = microbatch_sums(params, first, jax.random.fold_in(key, 0), frozen)
        else:
            shapes = jax.eval_shape(microbatch_sums, params, first, key, frozen)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), shapes)
            total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation), microbatches))
        if copies > 1:
            *scalars, grads = jax.tree.map(lambda x: jnp.sum(x, axis=0), total)
            total = *scalars, in_pieces(grads, state_shardings.params)
        return total

    def train_step(state: TrainState, batch: Batch, frozen: Any = None):
        with meshes.rules_context(mesh):
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            total, weight, user_sums, grads = batch_sums(state.params, batch, key, frozen)
            # A batch with total weight 0 has loss 0 and gradient 0, not 0/0.
            unit = jnp.where(weight > 0, weight, 1.0)
            grads = jax.tree.map(lambda g, p: (g / unit).astype(p.dtype), grads, state.params)
            loss, grad_norm = total / unit, optax.tree.norm(grads)
            old = dataclasses.replace(state, params=in_pieces(state.params, state_shardings.params))
            updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
            params = optax.apply_updates(old.params, updates)
            if stage.after_update is not None:
                after_key = jax.random.fold_in(key, accumulation)
                params = stage.after_update(params, user_sums, after_key)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        good = state.bad_step < 0
        new = TrainState(state.step + 1, params, opt_state, state.bad_step)
        new = jax.tree.map(lambda a, b: jnp.where(finite & good, a, b), new, old)
        new = new.replace(bad_step=jnp.where(good & ~finite, state.step, state.bad_step))
        metrics = {"loss": loss, "weight": weight, "grad_norm": grad_norm}
        if getattr(optimizer, "schedule", None) is not None:
            metrics["learning_rate"] = optimizer.schedule(state.step)
        metrics |= {name: x / unit for name, x in user_sums.items() if jnp.ndim(x) == 0}
        return new, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, meshes.batch_sharding(mesh), None),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        compiler_options=dict(compiler_options) if compiler_options else None,
    )


def _wide(dtype: Any) -> Any:
    """The dtype of sums over microbatches: at least float32."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _split(batch: Batch, accumulation: int, mesh: Mesh, axes: tuple[str, ...]) -> Batch:
    """`[B, ...]` -> `[accumulation, rows, ...]`, or `[accumulation, copies along axes, rows, ...]`.
    Row i belongs to microbatch `i % accumulation` and stays on its device.
    """
    parts = [math.prod(mesh.shape[axis] for axis in axes)] if axes else []
    layout = P(None, *[axes] * bool(axes), meshes.BATCH_AXES[len(axes) :])

    def split(x):
        meshes.check_divides(mesh.shape, x.shape[0], "batch", accumulation)
        x = jnp.moveaxis(x.reshape(*parts, -1, accumulation, *x.shape[1:]), len(parts) + 1, 0)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, layout))

    return jax.tree.map(split, batch)


def batch_size(batch: Batch) -> int:
    """Examples in a host batch: the first dimension of all its arrays.

    Raises:
      UserError: the first dimensions differ.
    """
    sizes = {
        meshes.path_name(path): np.shape(x)[:1] for path, x in jax.tree.leaves_with_path(batch)
    }
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise UserError(f"the arrays of one batch must share their first dimension; found {sizes}.")
    return next(iter(sizes.values()))[0]
