"""Layers one by one, for decoding: each with parameters and caches of its own.

A step of a beam search that takes a layer's weights out of a stack (`blocks.stacked`) copies them,
which costs as much as using them.
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
    """The layers of one side, called as `stacked` ones are; what those stack comes as tuples."""

    layer: type[nn.Module]
    config: ModelConfig
    length: int

    def setup(self):
        """Declares the layers."""
        self.layers = [self.layer(self.config, True) for _ in range(self.length)]

    def __call__(self, x: jax.Array, *shared) -> tuple[jax.Array, None]:
        """All layers, one after another."""
        for layer in self.layers:
            x, _ = layer(x, *shared)
        return x, None

    def cross_keys_values(self, carry: None, encoded: Encoded):
        """Keys of all layers, and values of all layers."""
        both = [layer.cross_keys_values(None, encoded)[1] for layer in self.layers]
        return carry, tuple(zip(*both, strict=True))

    def step(self, x, self_keys, self_values, cross_keys, cross_values, *shared):
        """See `DecoderLayer.step`."""
        caches = []
        own = zip(self_keys, self_values, cross_keys, cross_values, strict=True)
        for layer, cache in zip(self.layers, own, strict=True):
            x, written = layer.step(x, *cache, *shared)
            caches.append(written)
        return x, tuple(zip(*caches, strict=True))


def for_decoding(model: Seq2Seq, params) -> tuple[Seq2Seq, dict]:
    """The model with its layers unrolled, and its parameters laid out so: kernels in the compute
    type, which is how the trained model uses them. For as many searches as one likes.
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
