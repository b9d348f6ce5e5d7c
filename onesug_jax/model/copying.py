"""Copying: the next token may be read off the input instead of being recalled from training.

Related and past queries stand in the input because one of them is often the answer; most are too
rare for a decoder to know by heart. So places of the input compete with the vocabulary in one
softmax (CopyNet, Gu et al. 2016, section 3.2). With decoder state x, encoder states e_i and input
tokens u_i,

    score'(w) = log( exp score(w) + sum over i with y_i = w of exp c_i )
    c_i = (W_q x) . (W_k e_{i-1}) / sqrt(D) + b

where y_i is u_i, or the end of sequence where u_i ends an item (it opens the next one). The key of
a place is the state *before* it: to go on after token w the decoder looks for w in the input, and
to begin, it chooses among the markers that open the items, whose states know their rank.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import CopyKeys, Encoded, InputTokens, Mask
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import MASKED, logical, scaled_normal


class CopyHead(nn.Module):
    """Adds to the score of every token the weight of its places in the input."""

    config: ModelConfig

    def setup(self):
        """Declares the two projections and the weight of all places against the vocabulary."""
        width = self.config.d_model
        init = logical(scaled_normal(width), "embed", "kv")
        self.query = self.param("query", init, (width, width))
        self.key = self.param("key", init, (width, width))
        self.bias = self.param("bias", logical(nn.initializers.zeros), ())

    def keys(self, encoded: Encoded) -> CopyKeys:
        """The key of every place, from the state before it: `[B, L, D] -> [B, L, D]`."""
        before = jnp.pad(encoded, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return before @ self.key.astype(encoded.dtype)

    def __call__(
        self,
        scores: jax.Array,
        x: jax.Array,
        keys: CopyKeys,
        tokens: InputTokens,
        mask: Mask,
    ) -> jax.Array:
        """Scores of the vocabulary, and of the input's places, in one.

        Args:
          scores: `[B, Q, V]`, float32, of the vocabulary alone.
          x: `[B, Q, D]`, the decoder states behind them.
          keys: from `keys`.
          tokens: the input.
          mask: `[B, #Q, L]`, which places a state may read (its own example's).
        """
        written, copied = self._copied(tokens)
        places = jnp.einsum("bqd,bld->bql", x @ self.query.astype(x.dtype), keys)
        places = places.astype(jnp.float32) * self.config.d_model**-0.5 + self.bias
        mask = mask & copied[:, None, :]
        highest = jnp.max(places, axis=-1, keepdims=True, where=mask, initial=MASKED)
        highest = jax.lax.stop_gradient(highest)
        weights = jnp.exp(jnp.where(mask, places - highest, MASKED))
        # Every place learns what all places of its token weigh together ...
        alike = written[:, :, None] == written[:, None, :]
        together = jnp.einsum("bql,blm->bqm", weights, alike.astype(weights.dtype))
        together = jnp.log(together + 1e-30) + highest
        # ... and the first of them adds it, once.
        first = ~jnp.any(jnp.tril(alike & copied[:, None, :], -1), axis=-1) & copied
        own = jax.vmap(lambda rows, picks: rows[:, picks])(scores, written)
        more = jnp.where(first[:, None], jax.nn.softplus(together - own), 0.0)
        return jax.vmap(lambda rows, picks, new: rows.at[:, picks].add(new))(scores, written, more)

    def _copied(self, tokens: InputTokens) -> tuple[InputTokens, jax.Array]:
        """What every place writes, `[B, L]`, and whether it writes anything."""
        c = self.config
        marker = (tokens >= c.first_marker) & (tokens <= c.last_marker)
        soft = tokens == c.soft_id
        starts = jnp.arange(tokens.shape[1]) == 0
        return jnp.where(marker, c.end_id, tokens), (tokens > 0) & ~soft & ~starts
