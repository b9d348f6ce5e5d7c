"""Segments and soft tokens (e_p*) of the text input."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from onesug_jax.arrays import InputTokens


def openers(tokens: InputTokens, first_marker: int, last_marker: int) -> InputTokens:
    """The marker of each token's item: the last marker before the token, `[B, L]`.

    For a marker it is another marker directly before it, such as the conversion bucket of a related
    query. It is 0 for padding, and for tokens without a marker before them.
    """
    is_marker = (tokens >= first_marker) & (tokens <= last_marker)
    markers = jnp.where(is_marker, tokens, 0)
    index = jax.lax.cummax(jnp.where(is_marker, jnp.arange(tokens.shape[1]), 0), axis=1)
    last = jnp.take_along_axis(markers, index, axis=1)
    previous = jnp.pad(markers, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(tokens > 0, jnp.where(is_marker, previous, last), 0)


def soften(rows: jax.Array, tokens: InputTokens, vectors: jax.Array, soft_id: int) -> jax.Array:
    """`rows [B, L, D]` with the n-th soft token replaced by the n-th of `vectors [B, S, D]`."""
    soft = tokens == soft_id
    number = jnp.clip(jnp.cumsum(soft, axis=1) - 1, 0, vectors.shape[1] - 1)
    vector = jnp.take_along_axis(vectors.astype(rows.dtype), number[..., None], axis=1)
    return jnp.where(soft[..., None], vector, rows)
