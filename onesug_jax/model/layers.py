"""Building blocks of the encoder-decoder: RMSNorm, attention, gated MLP, relative positions.

Parameters have logical axis names, which the table in `train/mesh.py` maps to mesh axes. Kernels
have separate head axes (`[embed, heads, kv]`), so that table alone determines tensor parallelism.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import AttentionBias
from onesug_jax.model.config import ModelConfig


def logical(init: Callable, *axes: str | None) -> Callable:
    """Names the axes of a parameter; `train/mesh.py` maps them to the mesh."""
    return nn.with_logical_partitioning(init, axes)


def scaled_normal(fan_in: int) -> Callable:
    """Normal initialiser of variance 1 / fan_in (T5X's choice for every dense kernel)."""
    return nn.initializers.normal(stddev=fan_in**-0.5)


def length_dropout(rate: float) -> nn.Dropout:
    """Dropout with one mask for the whole length, as in T5X: it needs fewer random numbers."""
    return nn.Dropout(rate, broadcast_dims=(-2,))


class RMSNorm(nn.Module):
    """Scales by the root mean square, computed in float32: `[..., D] -> [..., D]`."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        scale = self.param("scale", logical(nn.initializers.ones, "embed"), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(self.dtype)


class GatedMLP(nn.Module):
    """T5 v1.1's feed-forward block: `gelu(x W0) * (x W1)`, then `Wo`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """`[..., D] -> [..., D]`."""
        d, ff = self.config.d_model, self.config.d_ff
        gate = self.param("gate", logical(scaled_normal(d), "embed", "mlp"), (d, ff))
        up = self.param("up", logical(scaled_normal(d), "embed", "mlp"), (d, ff))
        down = self.param("down", logical(scaled_normal(ff), "mlp", "embed"), (ff, d))
        hidden = nn.gelu(x @ gate.astype(x.dtype), approximate=True) * (x @ up.astype(x.dtype))
        hidden = length_dropout(self.config.dropout)(hidden, deterministic=deterministic)
        return hidden @ down.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention without biases and, as in T5, without the 1/sqrt(head_dim) factor.

    The three steps are separate methods for decoding, which computes the keys and values of the
    request once for all beams.
    """

    config: ModelConfig

    def setup(self):
        """Declares the four kernels."""
        c = self.config
        shape = (c.d_model, c.num_heads, c.head_dim)
        # The initial variance of the query kernel includes the missing scale of the scores.
        query_init = scaled_normal(c.d_model * c.head_dim)
        names = ("embed", "heads", "kv")
        self.query = self.param("query", logical(query_init, *names), shape)
        self.key = self.param("key", logical(scaled_normal(c.d_model), *names), shape)
        self.value = self.param("value", logical(scaled_normal(c.d_model), *names), shape)
        out_init = logical(scaled_normal(c.attention_width), "heads", "kv", "embed")
        self.out = self.param("out", out_init, (c.num_heads, c.head_dim, c.d_model))
        self.drop = length_dropout(c.dropout)

    def queries(self, x: jax.Array) -> jax.Array:
        """`[B, Q, D] -> [B, H, Q, head_dim]`."""
        return jnp.einsum("bqd,dhk->bhqk", x, self.query.astype(x.dtype))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, S, D] -> ([B, H, S, head_dim], [B, H, S, head_dim])`.

        With the heads before the length, `attend` and the steps of a beam search need no transpose.
        """
        keys = jnp.einsum("bsd,dhk->bhsk", x, self.key.astype(x.dtype))
        values = jnp.einsum("bsd,dhk->bhsk", x, self.value.astype(x.dtype))
        return keys, values

    def attend(
        self,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        *biases: AttentionBias,
        deterministic: bool = True,
    ) -> jax.Array:
        """Softmax-weighted values, projected back: `[B, Q, D]`; the softmax is float32. `biases`
        are added to the scores with broadcasting.
        """
        scores = jnp.einsum("bhqk,bhsk->bhqs", queries, keys).astype(jnp.float32)
        weights = jax.nn.softmax(functools.reduce(jnp.add, biases, scores), axis=-1)
        weights = self.drop(weights.astype(values.dtype), deterministic=deterministic)
        mixed = jnp.einsum("bhqs,bhsk->bhqk", weights, values)
        return jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(mixed.dtype))

    def attend_cached(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, *biases: AttentionBias
    ) -> jax.Array:
        """`attend` for a step of a beam search, in which few of many keys are visible."""
        mixed = jax.lax.platform_dependent(
            queries, keys, values, *biases, cuda=mixed_on_gpu, default=mixed_values
        )
        return jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(mixed.dtype))

    def __call__(self, x, source, bias, deterministic: bool) -> jax.Array:
        """Queries from `x [B, Q, D]`, keys and values from `source [B, S, D]` -> `[B, Q, D]`."""
        keys, values = self.keys_values(source)
        return self.attend(self.queries(x), keys, values, bias, deterministic=deterministic)


def mixed_values(
    queries: jax.Array, keys: jax.Array, values: jax.Array, *biases: AttentionBias
) -> jax.Array:
    """Softmax-weighted values `[B, H, Q, head_dim]`; the softmax is float32."""
    scores = jnp.einsum("bhqk,bhsk->bhqs", queries, keys).astype(jnp.float32)
    weights = jax.nn.softmax(functools.reduce(jnp.add, biases, scores), axis=-1)
    return jnp.einsum("bhqs,bhsk->bhqk", weights.astype(values.dtype), values)


def mixed_on_gpu(
    queries: jax.Array, keys: jax.Array, values: jax.Array, *biases: AttentionBias
) -> jax.Array:
    """`mixed_values` for GPUs, where memory traffic of the scores takes most of the time.

    The biases are added twice to bfloat16 scores, so that no float32 sum is stored, and the mixed
    values are divided by the sum of the weights, instead of each weight.
    """
    scores = jnp.einsum("bhqk,bhsk->bhqs", queries, keys).astype(jnp.float32)
    scores = functools.reduce(jnp.add, biases, scores)
    # The barrier prevents XLA from storing the scores for both the maximum and the exponential.
    highest = jax.lax.optimization_barrier(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bhqs,bhsk->bhqk", weights.astype(values.dtype), values)
    return (mixed / total).astype(values.dtype)


def relative_bucket(
    distance: jax.Array, bidirectional: bool, buckets: int, max_distance: int
) -> jax.Array:
    """T5's bucket of a signed distance `key position - query position`, of the same shape.

    Half of the buckets (of each direction) are for exact distances; the others grow logarithmically
    up to `max_distance` (Raffel et al. 2020, section 2.1).
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    growth = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
    far = exact + (growth * (buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativePositions(nn.Module):
    """One learned bias per head and distance bucket, for all layers of a side or for one layer
    (`ModelConfig.positions_per_layer`).
    """

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Bias `[1, H, Q, S]` (float32) for positions `[Q]` and `[S]`."""
        c = self.config
        table = self.param(
            "table",
            logical(scaled_normal(c.num_heads), "heads", "relpos_buckets"),
            (c.num_heads, c.relative_buckets),
        )
        distance = key_positions[None, :] - query_positions[:, None]
        bucket = relative_bucket(
            distance, self.bidirectional, c.relative_buckets, c.relative_max_distance
        )
        return jnp.take(table, bucket, axis=1)[None].astype(jnp.float32)
