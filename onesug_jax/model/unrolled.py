"""Unrolled layers for decoding, with separate parameters and caches.

With stacked layers (`blocks.stacked`), a step of a beam search copies the weights of each layer out
of the stack, which takes as long as the computation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import Encoded
from onesug_jax.model.config import ModelConfig

if TYPE_CHECKING:
    from onesug_jax.model.seq2seq import Seq2Seq

_KERNELS = {"query", "key", "value", "out", "gate", "up", "down", "head"}


class UnrolledLayers(nn.Module):
    """The layers of one side, with the methods of `stacked` layers but tuples instead of stacks."""

    layer: type[nn.Module]
    config: ModelConfig
    length: int

    def setup(self):
        """Declares the layers."""
        self.layers = [self.layer(self.config, True) for _ in range(self.length)]

    def __call__(self, x: jax.Array, *shared) -> tuple[jax.Array, None]:
        """Applies all layers."""
        for layer in self.layers:
            x, _ = layer(x, *shared)
        return x, None

    def cross_keys_values(self, carry: None, encoded: Encoded):
        """Keys of all layers, and values of all layers."""
        keys_values = [layer.cross_keys_values(None, encoded)[1] for layer in self.layers]
        return carry, tuple(zip(*keys_values, strict=True))

    def step(self, x, self_keys, self_values, cross_keys, cross_values, *shared):
        """See `DecoderLayer.step`."""
        new_caches = []
        caches = zip(self_keys, self_values, cross_keys, cross_values, strict=True)
        for layer, cache in zip(self.layers, caches, strict=True):
            x, new_cache = layer.step(x, *cache, *shared)
            new_caches.append(new_cache)
        return x, tuple(zip(*new_caches, strict=True))


def for_decoding(model: Seq2Seq, params) -> tuple[Seq2Seq, dict]:
    """The model with unrolled layers, and its parameters, with kernels cast to the compute type, as
    the stacked model casts them in every call.
    """
    config = model.config
    if model.unrolled:
        return model, params

    def typed(path, leaf):
        kernel = path[-1].key in _KERNELS and path[0].key not in ("embedding", "soft_projection")
        return jnp.asarray(leaf, config.dtype) if kernel else jnp.asarray(leaf)

    def layers(stack, length: int) -> dict:
        return {f"layers_{i}": jax.tree.map(lambda x: x[i], stack) for i in range(length)}  # noqa: B023

    params = jax.tree_util.tree_map_with_path(typed, dict(params))
    params["encoder"] = layers(params["encoder"], config.encoder_layers)
    params["decoder"] = layers(params["decoder"], config.decoder_layers)
    return model.clone(deterministic=True, unrolled=True), params
