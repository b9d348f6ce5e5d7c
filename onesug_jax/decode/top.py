"""The k largest of many numbers, in stages.

Beams choose 64 of a million continuations. Accelerators sort all of them for such a k, which costs
more than the rest of the step. The k largest lie in the k groups with the largest maxima, so it is
enough to choose among the groups' maxima, and then within those groups.

Reading a million scores per request is also the largest read of a step. `group_max_and_logsumexp`
reads them once, for the groups' maxima and the log-partition.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF

_AT_ONCE = 2048  # up to so many numbers are sorted directly


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the last axis: values `[..., k]`, best first, and their indices.

    The order of equal numbers is not defined.
    """
    count = x.shape[-1]
    group = group_size(count, k)
    if count <= _AT_ONCE or group < 4:
        return jax.lax.top_k(x, k)
    short = -count % group
    if short:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], constant_values=-jnp.inf)
    groups = x.reshape(*x.shape[:-1], -1, group)
    _, chosen = largest(jnp.max(groups, axis=-1), k)
    within = jnp.take_along_axis(groups, chosen[..., None], axis=-2)
    values, index = largest(within.reshape(*x.shape[:-1], k * group), k)
    return values, jnp.take_along_axis(chosen, index // group, axis=-1) * group + index % group


def group_size(count: int, k: int) -> int:
    """The group size that finds the k largest of `count` numbers fastest."""
    return 2 ** round(math.log2(max(count / k, 1)) / 2)


def group_max_and_logsumexp(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The groups' maxima and the logsumexp of scores `[..., G, g]`, from one read of them.

    Args:
      groups: unnormalised scores in G groups of g.
      allowed: `[G, g]`, which of them may be chosen.

    Returns:
      the largest allowed score of every group, `[..., G]`, `NEG_INF` if none is allowed; and the
      logarithm of the sum of exponentials of all scores, allowed or not, `[...]`.
    """
    # On a GPU, a logsumexp that computes the maximum first reads all scores twice.
    return jax.lax.platform_dependent(groups, allowed, cuda=in_one_pass, default=in_turn)


def in_turn(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`group_max_and_logsumexp` by a maximum, a sum and a maximum."""
    highest = jnp.max(jnp.where(allowed, groups, NEG_INF), axis=-1)
    return highest, jax.nn.logsumexp(groups, axis=(-2, -1))


def in_one_pass(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`group_max_and_logsumexp` by one reduction: sums are rescaled as their maximum grows."""

    def merge(a, b):
        smaller = jnp.exp(-jnp.abs(a[0] - b[0]))  # scale of the sum with the smaller maximum
        total = jnp.where(a[0] > b[0], a[1] + b[1] * smaller, a[1] * smaller + b[1])
        return jnp.maximum(a[0], b[0]), total, jnp.maximum(a[2], b[2])

    low = jnp.float32(NEG_INF)
    top, total, highest = jax.lax.reduce(
        (groups, jnp.ones_like(groups), jnp.where(allowed, groups, low)),
        (low, jnp.float32(0), low),
        merge,
        (groups.ndim - 1,),
    )
    return highest, jax.nn.logsumexp(top, axis=-1, b=total)
