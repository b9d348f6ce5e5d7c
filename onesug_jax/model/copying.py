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
import flax.struct
import jax
import jax.numpy as jnp

from onesug_jax.arrays import CopyKeys, Encoded, InputTokens, Mask, TargetTokens, TokenLogs
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import MASKED, logical, scaled_normal


@flax.struct.dataclass
class Places:
    """The places of an input that may be copied, once a request.

    Attributes:
      keys: `[B, L, D]`, from the state before each place.
      written: `[B, L]`, the token that each place writes.
      copied: `[B, L]`, whether it writes any.
      alike: `[B, L, L]`, 1 where two places write the same token, float32.
      first: `[B, L]`, whether no place before it writes its token.
      where: `[B, V]`, the first place that writes each token, L where none does.
    """

    keys: CopyKeys
    written: InputTokens
    copied: jax.Array
    alike: jax.Array
    first: jax.Array
    where: jax.Array


@flax.struct.dataclass
class Scores:
    """Next-token scores of Q decoder states, unnormalised.

    Attributes:
      vocabulary: `[B, Q, V]`, float32.
      copies: `[B, Q, L]`, float32, of the input's places; None where the model does not copy.
      places: what they write.
      candidates: `[B, C]`, float32, of the request's candidates as first tokens
        (`candidates.py`); None where the model has no such tokens.
      beside: `[B, Q]`, what these add to a softmax, the log of a sum; `MASKED` but for first
        tokens.
    """

    vocabulary: jax.Array
    copies: jax.Array | None = None
    places: Places | None = None
    candidates: jax.Array | None = None
    beside: jax.Array | None = None

    def log_probabilities(self, targets: TargetTokens) -> TokenLogs:
        """`log pi` of one token a state, `[B, Q]`: nothing as wide as the vocabulary is copied."""
        return self._of(targets) - self.normalisers()

    def normalisers(self) -> jax.Array:
        """What a state's scores exceed its log-probabilities by, `[B, Q]`."""
        total = jax.nn.logsumexp(self.vocabulary, axis=-1)
        if self.beside is not None:
            total = jnp.logaddexp(total, self.beside)
        if self.copies is None:
            return total
        return jnp.logaddexp(total, jax.nn.logsumexp(self.copies, axis=-1))

    def of(self, tokens: jax.Array) -> jax.Array:
        """The scores of some tokens of every state, `[B, Q, C]`; what `logits` has of them."""
        chosen = jnp.take_along_axis(self.vocabulary, tokens, axis=-1)
        if self.copies is None or self.places is None:
            return chosen
        place = jax.vmap(lambda row, picks: row[picks])(self.places.where, tokens)
        copied = jnp.pad(self._together(), ((0, 0), (0, 0), (0, 1)), constant_values=MASKED)
        return jnp.logaddexp(chosen, jnp.take_along_axis(copied, place, axis=-1))

    def ranked_first(self, targets: TargetTokens) -> jax.Array:
        """Whether no other token scores higher, `[B, Q]` booleans.

        Where the model copies, a rival counts by its place in the vocabulary or by its places in
        the input, whichever is more, not by both.
        """
        rivals = jnp.max(self.vocabulary, axis=-1)
        if self.copies is not None:
            rivals = jnp.maximum(rivals, jnp.max(self._together(), axis=-1))
        return self._of(targets) >= rivals

    def logits(self) -> jax.Array:
        """One score a token, `[B, Q, V]`."""
        if self.copies is None or self.places is None:
            return self.vocabulary
        # Every place knows what all places of its token weigh together; the first of them adds it.
        written, first = self.places.written, self.places.first
        own = jax.vmap(lambda rows, picks: rows[:, picks])(self.vocabulary, written)
        more = jnp.where(first[:, None], jax.nn.softplus(self._together() - own), 0.0)
        add = jax.vmap(lambda rows, picks, more: rows.at[:, picks].add(more))
        return add(self.vocabulary, written, more)

    def _of(self, targets: TargetTokens) -> jax.Array:
        """The score of one token a state, `[B, Q]`."""
        chosen = jnp.take_along_axis(self.vocabulary, targets[..., None], axis=-1)[..., 0]
        if self.copies is None or self.places is None:
            return chosen
        return jnp.logaddexp(chosen, written(self.copies, self.places, targets))

    def _together(self) -> jax.Array:
        """The score of the token that a place writes, of all places that write it, `[B, Q, L]`."""
        assert self.copies is not None and self.places is not None
        highest = jax.lax.stop_gradient(jnp.max(self.copies, axis=-1, keepdims=True))
        weights = jnp.exp(self.copies - highest)
        # Rounded, as accelerators multiply by default, a token's own sum would not equal `_of`'s.
        sums = jnp.einsum("bql,blm->bqm", weights, self.places.alike, precision="highest")
        # Where nothing may be read all places weigh the same, and next to nothing.
        return jnp.log(sums + 1e-30) + highest


def written(copies: jax.Array, places: Places, targets: TargetTokens) -> jax.Array:
    """The score `[B, Q]` of all places that write `targets [B, Q]`, of `copies [B, Q, L]`."""
    here = places.written[:, None, :] == targets[:, :, None]
    return jax.nn.logsumexp(jnp.where(here, copies, MASKED), axis=-1)


class CopyHead(nn.Module):
    """Scores the places of the input beside the vocabulary."""

    config: ModelConfig

    def setup(self):
        """Declares the two projections and the weight of all places against the vocabulary."""
        width = self.config.d_model
        init = logical(scaled_normal(width), "embed", "kv")
        self.query = self.param("query", init, (width, width))
        self.key = self.param("key", init, (width, width))
        self.bias = self.param("bias", logical(nn.initializers.zeros), ())

    def places(self, encoded: Encoded, tokens: InputTokens) -> Places:
        """What of an input may be copied: `encoded [B, L, D]`, `tokens [B, L]`."""
        c = self.config
        marker = (tokens >= c.first_marker) & (tokens <= c.last_marker)
        written = jnp.where(marker, c.end_id, tokens)
        copied = (tokens > 0) & (tokens != c.soft_id) & (jnp.arange(tokens.shape[1]) > 0)
        alike = written[:, :, None] == written[:, None, :]
        first = ~jnp.any(jnp.tril(alike & copied[:, None, :], -1), axis=-1)
        before = jnp.pad(encoded, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        keys = before @ self.key.astype(encoded.dtype)
        first = first & copied
        nowhere = jnp.full((len(tokens), c.vocab_size), tokens.shape[1], jnp.int32)
        place = jnp.where(first, jnp.arange(tokens.shape[1]), tokens.shape[1])
        where = jax.vmap(lambda row, picks, place: row.at[picks].min(place))(
            nowhere, written, place
        )
        return Places(keys, written, copied, alike.astype(jnp.float32), first, where)

    def __call__(self, vocabulary: jax.Array, x: jax.Array, places: Places, mask: Mask) -> Scores:
        """Scores of the vocabulary, and of the input's places beside it.

        Args:
          vocabulary: `[B, Q, V]`, float32.
          x: `[B, Q, D]`, the decoder states behind them.
          places: from `places`.
          mask: `[B, #Q, L]`, which places a state may read (its own example's).
        """
        return Scores(vocabulary, self.copies(x, places, mask), places)

    def copies(self, x: jax.Array, places: Places, mask: Mask) -> jax.Array:
        """Scores of the input's places alone, `[B, Q, L]`."""
        copies = jnp.einsum("bqd,bld->bql", x @ self.query.astype(x.dtype), places.keys)
        copies = copies.astype(jnp.float32) * self.config.d_model**-0.5 + self.bias
        return jnp.where(mask & places.copied[:, None, :], copies, MASKED)
