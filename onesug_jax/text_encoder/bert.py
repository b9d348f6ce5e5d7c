"""BERT's encoder in Flax: the text encoder of Prefix2Query (PAPER.md section 2, point 2).

Post-layer-norm blocks, learned positions, token types, exact GELU (Devlin et al. 2019). The paper
uses BGE, which has this architecture with 12 layers of width 768. Kernels have head axes, and every
parameter names its logical axes for `train/mesh.py`. There is no pooler and no task head.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF
from onesug_jax.errors import UserError
from onesug_jax.model.layers import length_dropout, logical

POOLINGS = ("mean", "cls")
DTYPES = ("float32", "bfloat16")
_INIT = nn.initializers.truncated_normal(0.02)
_HIDDEN = ("batch", "length", "embed")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    Attributes:
      max_positions: rows of the position table.
      max_length: tokens a text is cut to; at most `max_positions`.
      pooling: "mean" over the tokens of a text, or "cls", its first token.
      dropout: rate for hidden states and attention weights, in training.
      dtype: of the matrix products; parameters, norms and vectors are float32.
    """

    vocab_size: int
    d_model: int = 128
    layers: int = 2
    heads: int = 4
    d_ff: int = 512
    max_positions: int = 64
    max_length: int = 32
    pooling: str = "mean"
    dropout: float = 0.1
    token_types: int = 2
    norm_eps: float = 1e-12
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "layers", "heads", "d_ff", "token_types"):
            if getattr(self, name) < 1:
                raise UserError(f"EncoderConfig.{name}={getattr(self, name)}: expected 1 or more.")
        if self.d_model % self.heads:
            raise UserError(
                f"EncoderConfig: d_model={self.d_model} is not divisible by heads={self.heads}."
            )
        if not 3 <= self.max_length <= self.max_positions:
            raise UserError(
                f"EncoderConfig.max_length={self.max_length}: expected 3 (a word between [CLS] and "
                f"[SEP]) up to max_positions={self.max_positions}."
            )
        for name, choices in (("pooling", POOLINGS), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"EncoderConfig.{name}={getattr(self, name)!r}: expected one of "
                    f"{', '.join(choices)}."
                )
        if not 0 <= self.dropout < 1:
            raise UserError(f"EncoderConfig.dropout={self.dropout}: expected at least 0, below 1.")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.heads


def _dense(module: nn.Module, name: str, x: jax.Array, shape, names, spec: str) -> jax.Array:
    """`einsum(spec, x, kernel) + bias`; the bias has the kernel's output axes."""
    inputs, outputs = spec.split("->")
    kernel_axes = inputs.split(",")[1]
    bias_axes = [axis for axis, letter in enumerate(kernel_axes) if letter in outputs]
    kernel = module.param(f"{name}_kernel", logical(_INIT, *names), shape)
    bias = module.param(
        f"{name}_bias",
        logical(nn.initializers.zeros, *(names[axis] for axis in bias_axes)),
        tuple(shape[axis] for axis in bias_axes),
    )
    return jnp.einsum(spec, x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


def _layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    """Mean 0, variance 1, scale and bias, computed in float32: `[..., D] -> [..., D]`."""
    return nn.LayerNorm(
        config.norm_eps,
        dtype=jnp.dtype(config.dtype),
        scale_init=logical(nn.initializers.ones, "embed"),
        bias_init=logical(nn.initializers.zeros, "embed"),
        use_fast_variance=False,
        name=name,
    )


class Layer(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalised."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """`x [B, L, D]`, `bias [B, 1, 1, L]` added to the scores -> `[B, L, D]`."""
        c = self.config
        drop = length_dropout(c.dropout)
        into, shape = ("embed", "heads", "kv"), (c.d_model, c.heads, c.head_dim)
        query = _dense(self, "query", x, shape, into, "bld,dhk->blhk")
        key = _dense(self, "key", x, shape, into, "bld,dhk->blhk")
        value = _dense(self, "value", x, shape, into, "bld,dhk->blhk")
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(scores / c.head_dim**0.5 + bias, axis=-1).astype(x.dtype)
        weights = drop(weights, deterministic=self.deterministic)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weights, value)
        mixed = _dense(
            self, "out", mixed, shape[1:] + shape[:1], into[1:] + into[:1], "blhk,hkd->bld"
        )
        x = _layer_norm(c, "attention_norm")(x + drop(mixed, deterministic=self.deterministic))
        hidden = _dense(self, "up", x, (c.d_model, c.d_ff), ("embed", "mlp"), "bld,df->blf")
        hidden = jax.nn.gelu(hidden, approximate=False)
        hidden = _dense(self, "down", hidden, (c.d_ff, c.d_model), ("mlp", "embed"), "blf,fd->bld")
        x = _layer_norm(c, "norm")(x + drop(hidden, deterministic=self.deterministic))
        return nn.with_logical_constraint(x, _HIDDEN)


class Bert(nn.Module):
    """Token ids to one unit vector a text."""

    config: EncoderConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """`tokens [B, L]`, of which the first `lengths [B]` are real -> `[B, D]` float32."""
        c = self.config
        rows = {"words": c.vocab_size, "positions": c.max_positions, "types": c.token_types}
        axes: dict[str, Any] = {"words": "vocab", "positions": None, "types": None}
        tables = {
            name: self.param(name, logical(_INIT, axes[name], "embed"), (rows[name], c.d_model))
            for name in rows
        }
        length = tokens.shape[1]
        mask = jnp.arange(length)[None, :] < lengths[:, None]
        x = jnp.take(tables["words"], tokens, axis=0)
        # A text is one segment: every token is of type 0.
        x = x + tables["positions"][:length] + tables["types"][0]
        x = _layer_norm(c, "norm")(x)
        x = length_dropout(c.dropout)(x, deterministic=self.deterministic)
        x = nn.with_logical_constraint(x, _HIDDEN)
        bias = jnp.where(mask, 0.0, NEG_INF)[:, None, None, :]
        for number in range(c.layers):
            x = Layer(c, self.deterministic, name=f"layer_{number}")(x, bias)
        x = x.astype(jnp.float32)
        if c.pooling == "mean":
            weights = mask.astype(jnp.float32)
            pooled = jnp.einsum("bld,bl->bd", x, weights) / jnp.sum(weights, axis=1, keepdims=True)
        else:
            pooled = x[:, 0]
        norm = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        return pooled / jnp.maximum(norm, 1e-12)
