"""The k largest of many numbers, in stages.

Beams choose 64 of a million continuations. Sorting them all, which is what accelerators do for such
a k, costs more than the rest of the step. The largest k lie in the k groups of the largest maxima,
so it is enough to choose among the groups' maxima, and then within those groups.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_AT_ONCE = 2048  # as many are sorted without more ado


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the last axis: values `[..., k]`, best first, and their places.

    Of equal numbers any may be taken.
    """
    count = x.shape[-1]
    group = 2 ** round(math.log2(max(count / k, 1)) / 2)
    if count <= _AT_ONCE or group < 4:
        return jax.lax.top_k(x, k)
    short = -count % group
    if short:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], constant_values=-jnp.inf)
    groups = x.reshape(*x.shape[:-1], -1, group)
    _, chosen = largest(jnp.max(groups, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # so that places ascend as in `x`
    within = jnp.take_along_axis(groups, chosen[..., None], axis=-2)
    values, place = largest(within.reshape(*x.shape[:-1], k * group), k)
    return values, jnp.take_along_axis(chosen, place // group, axis=-1) * group + place % group
