"""Rows of the text input that hold more than their token: segments and the soft token e_p*."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from onesug_jax.arrays import InputTokens


def openers(tokens: InputTokens, first_marker: int, last_marker: int) -> InputTokens:
    """The marker whose item each token belongs to, the nearest one before it, `[B, L]`.

    To a marker another belongs if that stands right before it: so a related query's marker carries
    the query's conversion bucket. 0 for padding, and for tokens that no marker stands before.
    """
    marker = (tokens >= first_marker) & (tokens <= last_marker)
    markers = jnp.where(marker, tokens, 0)
    place = jax.lax.cummax(jnp.where(marker, jnp.arange(tokens.shape[1]), 0), axis=1)
    nearest = jnp.take_along_axis(markers, place, axis=1)
    before = jnp.pad(markers, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(tokens > 0, jnp.where(marker, before, nearest), 0)


def soften(rows: jax.Array, tokens: InputTokens, vectors: jax.Array, soft_id: int) -> jax.Array:
    """`rows [B, L, D]` with the n-th soft token replaced by the n-th of `vectors [B, S, D]`."""
    soft = tokens == soft_id
    number = jnp.clip(jnp.cumsum(soft, axis=1) - 1, 0, vectors.shape[1] - 1)
    chosen = jnp.take_along_axis(vectors.astype(rows.dtype), number[..., None], axis=1)
    return jnp.where(soft[..., None], chosen, rows)
