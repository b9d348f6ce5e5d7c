"""The k largest of many numbers, in stages.

Beams choose 64 of a million continuations. Sorting them all, which is what accelerators do for such
a k, costs more than the rest of the step. The largest k lie in the k groups of the largest maxima,
so it is enough to choose among the groups' maxima, and then within those groups.

A million scores a request are also the most that a step has to read. `group_max_and_logsumexp`
reads them once, for the groups' maxima and for what they must be normalised by.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF

_AT_ONCE = 2048  # as many are sorted without more ado


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the last axis: values `[..., k]`, best first, and their places.

    Of equal numbers any may be taken.
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
    values, place = largest(within.reshape(*x.shape[:-1], k * group), k)
    return values, jnp.take_along_axis(chosen, place // group, axis=-1) * group + place % group


def group_size(count: int, k: int) -> int:
    """How many of `count` numbers to take together so that the k largest are found soonest."""
    return 2 ** round(math.log2(max(count / k, 1)) / 2)


def group_max_and_logsumexp(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a search must know of all scores `[..., G, g]`, from one reading of them.

    Args:
      groups: scores, unnormalised, in G groups of g.
      allowed: `[G, g]`, which of them may be chosen.

    Returns:
      the largest allowed score of every group, `[..., G]`, `NEG_INF` where there is none; and the
      logarithm of the sum of the exponentials of all scores, allowed or not, `[...]`.
    """
    # On a GPU a sum of exponentials that first asks for the maximum reads everything twice.
    return jax.lax.platform_dependent(groups, allowed, cuda=in_one_pass, default=in_turn)


def in_turn(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`group_max_and_logsumexp` by a maximum, a sum and a maximum."""
    highest = jnp.max(jnp.where(allowed, groups, NEG_INF), axis=-1)
    return highest, jax.nn.logsumexp(groups, axis=(-2, -1))


def in_one_pass(groups: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`group_max_and_logsumexp` by one reduction: sums are rescaled as their maximum grows."""

    def merge(a, b):
        smaller = jnp.exp(-jnp.abs(a[0] - b[0]))  # of the two, what the one behind counts for
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
