"""Layers of the encoder and of the decoder, and stacks of them.

In training, the layers of a side are one module whose parameters have a leading axis (`stacked`),
so only one layer is compiled. For decoding they are unrolled (`unrolled.py`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF, AttentionBias, Encoded, Mask
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import (
    Attention,
    GatedMLP,
    RelativePositions,
    RMSNorm,
    length_dropout,
)

ACTIVATION_AXES = ("batch", "length", None)  # the residual stream, not sharded in width


def as_bias(mask: Mask) -> AttentionBias:
    """`[B, Q, S]` booleans -> float32 `[B, 1, Q, S]`: 0 where visible, else `NEG_INF`."""
    return jnp.where(mask, 0.0, NEG_INF)[:, None].astype(jnp.float32)


class EncoderLayer(nn.Module):
    """Self-attention and gated MLP, each after an RMSNorm and added to the stream."""

    config: ModelConfig
    deterministic: bool

    def setup(self):
        """Declares the blocks."""
        dtype = jnp.dtype(self.config.dtype)
        if self.config.positions_per_layer:
            self.positions = RelativePositions(self.config, bidirectional=True)
        self.attention_norm, self.mlp_norm = RMSNorm(dtype), RMSNorm(dtype)
        self.attention, self.mlp = Attention(self.config), GatedMLP(self.config)
        self.drop = length_dropout(self.config.dropout)

    def __call__(
        self, x: Encoded, bias: AttentionBias, positions: jax.Array
    ) -> tuple[Encoded, None]:
        """One layer; the second result is the (empty) scan output.

        `positions [L]` are for the layer's own table; `bias` already includes a shared table.
        """
        quiet = self.deterministic
        if self.config.positions_per_layer:
            bias = bias + self.positions(positions, positions)
        x = nn.with_logical_constraint(x, ACTIVATION_AXES)
        y = self.attention_norm(x)
        x = x + self.drop(self.attention(y, y, bias, quiet), deterministic=quiet)
        x = x + self.drop(self.mlp(self.mlp_norm(x), quiet), deterministic=quiet)
        return x, None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the request, gated MLP."""

    config: ModelConfig
    deterministic: bool

    def setup(self):
        """Declares the blocks."""
        dtype = jnp.dtype(self.config.dtype)
        if self.config.positions_per_layer:
            self.positions = RelativePositions(self.config, bidirectional=False)
        self.self_norm, self.cross_norm, self.mlp_norm = (RMSNorm(dtype) for _ in range(3))
        self.self_attention = Attention(self.config)
        self.cross_attention = Attention(self.config)
        self.mlp = GatedMLP(self.config)
        self.drop = length_dropout(self.config.dropout)

    def __call__(self, x, encoded, self_bias, cross_bias, positions) -> tuple[jax.Array, None]:
        """All positions of a request's C targets: `x [B, C * T, D]`, `encoded [B, L, D]`.

        A target of T positions (`self_bias [#B, #H, T, T]`) attends to itself and to the request,
        whose keys and values are computed once for all targets. `positions [T]` are for the layer's
        own table; `self_bias` already includes a shared table.
        """
        quiet = self.deterministic
        if self.config.positions_per_layer:
            self_bias = self_bias + self.positions(positions, positions)
        x = nn.with_logical_constraint(x, ACTIVATION_AXES)
        y = self.self_norm(x).reshape(-1, self_bias.shape[-1], x.shape[-1])
        y = self.self_attention(y, y, self_bias, quiet).reshape(x.shape)
        x = x + self.drop(y, deterministic=quiet)
        y = self.cross_attention(self.cross_norm(x), encoded, cross_bias, quiet)
        x = x + self.drop(y, deterministic=quiet)
        x = x + self.drop(self.mlp(self.mlp_norm(x), quiet), deterministic=quiet)
        return x, None

    def cross_keys_values(self, carry: None, encoded: Encoded):
        """This layer's cross-attention keys and values, `[B, H, L, head_dim]` each."""
        return carry, self.cross_attention.keys_values(encoded)

    def step(
        self, x, self_keys, self_values, cross_keys, cross_values, own, distance, cross_bias, t
    ):
        """One position of K beams.

        Args:
          x: `[B, K, D]`, the beams' stream at position `t`.
          self_keys, self_values: `[B, H, T, S, head_dim]`, append-only cache of S >= K slots.
          cross_keys, cross_values: `[B, H, L, head_dim]`, one copy per request.
          own: `[B, 1, K, T * S]`, masks the future and the keys of other beams.
          distance: `[1, H, 1, T * S]`, the bias of a shared table of relative positions.
          cross_bias: `[B, 1, 1, L]`.
          t: the position, a traced integer.

        Returns:
          the stream, and the cache that includes position `t`.
        """
        if self.config.positions_per_layer:
            distance = over_slots(self.positions, t, *self_keys.shape[2:4])
        attention, y = self.self_attention, self.self_norm(x)
        keys, values = attention.keys_values(y)
        at = (0, 0, t, 0, 0)
        self_keys = jax.lax.dynamic_update_slice(self_keys, keys[:, :, None], at)
        self_values = jax.lax.dynamic_update_slice(self_values, values[:, :, None], at)
        past = [
            cache.reshape(*cache.shape[:2], -1, cache.shape[-1])
            for cache in (self_keys, self_values)
        ]
        x = x + attention.attend_cached(attention.queries(y), *past, own, distance)
        queries = self.cross_attention.queries(self.cross_norm(x))
        x = x + self.cross_attention.attend(queries, cross_keys, cross_values, cross_bias)
        x = x + self.mlp(self.mlp_norm(x), True)
        return x, (self_keys, self_values)


def over_slots(positions: RelativePositions, t: jax.Array, length: int, slots: int) -> jax.Array:
    """The relative-position bias of position `t` for every cached key: `[1, H, 1, T * S]`."""
    distance = positions(t[None], jnp.arange(length))
    return jnp.repeat(distance, slots, axis=-1)


def stacked(layer: type[nn.Module], config: ModelConfig, length: int, methods: dict) -> type:
    """`length` layers as one module whose parameters have a leading `layers` axis.

    `methods`: name -> for each argument after the stream, the axis of the layers or `nn.broadcast`.
    """
    shared = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": length,
        "unroll": length if config.unroll else 1,
        "metadata_params": {nn.PARTITION_NAME: "layers"},
    }
    return nn.scan(
        layer, methods={name: shared | {"in_axes": axes} for name, axes in methods.items()}
    )


def with_remat(layer: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """Applies the configured recomputation to a layer's training pass."""
    if config.remat == "none":
        return layer
    policy = {"full": None, "dots": jax.checkpoint_policies.dots_saveable}[config.remat]
    return nn.remat(layer, policy=policy, prevent_cse=config.unroll, methods=("__call__",))
