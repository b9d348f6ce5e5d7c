"""How alike the items of a request are, and attention that is biased by it.

An item is the enhanced prefix, a query of the history, or a candidate. Small projections learn
likeness slowly, so attention receives it. For head h, position i and key j,

    scores[h, i, j] = q_i . k_j + T5_relative[h, i - j] + sum_r a[h, r] * R_r[i, j] + b[h] . f(j)
    R_1 = cos(e*_i, e*_j)                         R_2 = words in common / words in either
    R_3 = words in common / words of the key      R_4 = 1 for the same query
    R_5 = cos(W e*_i, W e*_j)                     R_6 = cos(A e*_i, B e*_j)

where f(j) says how old key j is, R_3 is 1 where a query was refined, and W, A, B are learned: R_5
for what the same people search, R_6 for what is searched after key j. A sink, a key of value 0,
takes the attention of a position that finds nothing alike. What each head found, sum_j w[h, i, j] *
R_r[i, j] and sum_j w[h, i, j], enters the stream through a small MLP beside the values. PAPER.md
has no such thing: it belongs to models with items.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import (
    AttentionBias,
    Encoded,
    ItemIds,
    ItemVectors,
    ItemWords,
    Projections,
    Relations,
)
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import (
    Attention,
    GatedMLP,
    RMSNorm,
    length_dropout,
    logical,
    scaled_normal,
)

RELATIONS = ("cosine", "overlap", "contained", "same", "alike", "follows")
PROJECTIONS = 3  # the learned W, A and B
KEY_FEATURES = 7  # of a key: whether it is of the history, and what `items.past_features` says
_STEEPEST = 8.0  # of the multiples of the cosine that the heads start with
_SINK = 4.0  # the sink's score at the start: between that of a stranger and of an alike item
_FOUND = 3.0  # brings what was found, at most 1, to the scale of the stream


def relations(
    vectors: ItemVectors,
    projections: Projections,
    words: ItemWords,
    weights: ItemWords,
    numbers: ItemIds,
    keys: int,
) -> Relations:
    """Likeness of all positions to the first `keys` of them, float32 `[B, R, S, keys]`.

    Args:
      vectors: `[B, S, E]` unit vectors; 0 for positions that are no items.
      projections: `[3, E, P]`, the learned W, A and B.
      words: `[B, S, W]` hashed words, distinct in a query, 0 behind them; weights: `[B, S, W]` how
        much each counts.
      numbers: `[B, S]` query numbers + 1; 0 for positions that are no queries.
    """

    def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("bqe,bke->bqk", x, y[:, :keys], preferred_element_type=jnp.float32)

    projected = jnp.einsum("bqe,nep->nbqp", vectors, projections)
    squares = jnp.sum(jnp.square(projected), axis=-1, keepdims=True)
    alike, later, sooner = projected / jnp.sqrt(squares + 1e-6)
    same = (numbers[:, :, None] == numbers[:, None, :keys]) & (numbers[:, :, None] > 0)
    shared, contained = overlaps(words, weights, words[:, :keys], weights[:, :keys])
    found = [cosine(vectors, vectors), shared, contained, same.astype(jnp.float32)]
    found += [cosine(alike, alike), cosine(later, sooner)]
    return jax.lax.optimization_barrier(jnp.stack(found, axis=1))  # not in each layer anew


def overlaps(
    words: ItemWords, weights: ItemWords, key_words: ItemWords, key_weights: ItemWords
) -> tuple[jax.Array, jax.Array]:
    """Weight of the words in common over that of the words in either, and over that of the key's
    words: `[B, Q, S]` each, 0 to 1.
    """
    # Word by word, over all pairs of positions at once; what is gathered is not gathered for each.
    words, weights, key_words = jax.lax.optimization_barrier((words, weights, key_words))
    common = jnp.zeros((*words.shape[:2], key_words.shape[1]))
    for place in range(words.shape[-1]):
        word = words[:, :, None, place]
        found = jnp.any(word[..., None] == key_words[:, None], axis=-1) & (word > 0)
        common += jnp.where(found, weights[:, :, None, place], 0.0)
    key = jnp.sum(key_weights, -1)[:, None]
    either = jnp.sum(weights, -1)[:, :, None] + key - common
    return common / jnp.maximum(either, 1e-6), common / jnp.maximum(key, 1e-6)


class RelationAttention(Attention):
    """Self-attention with a bias by relations and by features of the keys, and a sink."""

    def setup(self) -> None:
        """Declares the parameters beside those of `Attention`."""
        super().setup()
        c = self.config
        kinds, heads, width = len(RELATIONS), c.num_heads, c.d_model
        self.multiples = self.param(
            "multiples", logical(_multiples, "relations", "heads"), (kinds, heads)
        )
        self.key_bias = self.param(
            "key_bias", logical(nn.initializers.zeros, "features", "heads"), (KEY_FEATURES, heads)
        )
        self.sink = self.param("sink", logical(nn.initializers.constant(_SINK), "heads"), (heads,))
        found = (kinds + 1) * heads
        self.found_in = self.param(
            "found_in",
            logical(scaled_normal(found), "relations", "heads", "embed"),
            (kinds + 1, heads, width),
        )
        self.found_out = self.param(
            "found_out", logical(scaled_normal(width), "features", "embed"), (width, width)
        )

    def related(
        self,
        x: Encoded,
        context: Encoded,
        bias: AttentionBias,
        relations: Relations,
        key_features: jax.Array,
        deterministic: bool,
    ) -> Encoded:
        """`[B, Q, D]` attends to `context [B, S, D]`.

        Args:
          bias: `[#B, #H, #Q, S]`: what may be seen, and T5's positions.
          relations: `[B, R, I, J]`, of the last I positions, which are items, to the last J keys.
          key_features: `[B, J, KEY_FEATURES]`, of these keys.
        """
        text, behind = x.shape[1] - relations.shape[2], context.shape[1] - relations.shape[3]
        keys, values = self.keys_values(context)
        scores = jnp.einsum("bhqk,bhsk->bhqs", self.queries(x), keys).astype(jnp.float32)
        by_key = jnp.einsum("bsf,fh->bhs", key_features, self.key_bias)
        scores += jnp.pad(by_key, ((0, 0), (0, 0), (behind, 0)))[:, :, None] + bias
        alike = jnp.zeros(())
        for kind in range(len(RELATIONS)):  # sums that fuse, where a product of matrices would not
            alike += relations[:, kind, None] * self.multiples[kind][:, None, None]
        scores += jnp.pad(alike, ((0, 0), (0, 0), (text, 0), (behind, 0)))
        sink = self.sink[:, None, None]
        highest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
        weights = jnp.exp(scores - highest)
        weights /= jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sink - highest)
        found = jnp.einsum("bhqs,brqs->bqrh", weights[:, :, text:, behind:], relations)
        found = jnp.pad(found, ((0, 0), (text, 0), (0, 0), (0, 0)))
        total = jnp.moveaxis(jnp.sum(weights, axis=-1), 1, 2)[:, :, None]
        found = _FOUND * jnp.concatenate([found, total], axis=2)
        weights = self.drop(weights.astype(values.dtype), deterministic=deterministic)
        mixed = jnp.einsum("bhqs,bhsk->bhqk", weights, values)
        out = jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(mixed.dtype))
        hidden = nn.silu(jnp.einsum("bqrh,rhd->bqd", found, self.found_in)).astype(out.dtype)
        return out + hidden @ self.found_out.astype(out.dtype)


def _multiples(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """The heads' multiples of the cosine, spread from 0 to `_STEEPEST`; 1 of the others."""
    del key
    return jnp.ones(shape, dtype).at[0].set(jnp.linspace(0.0, _STEEPEST, shape[1]))


class ItemLayer(nn.Module):
    """A layer of the encoder over text and items: `blocks.EncoderLayer` with relations.

    All positions attend to the context, the first positions of the stream: text and history. So a
    candidate's state depends on no other candidate, and time grows with their number, not with its
    square.
    """

    config: ModelConfig
    deterministic: bool

    def setup(self) -> None:
        """Declares the blocks."""
        dtype = jnp.dtype(self.config.dtype)
        self.attention_norm, self.mlp_norm = RMSNorm(dtype), RMSNorm(dtype)
        self.attention, self.mlp = RelationAttention(self.config), GatedMLP(self.config)
        self.drop = length_dropout(self.config.dropout)

    def __call__(
        self, x: Encoded, bias: AttentionBias, relations: Relations, key_features: jax.Array
    ) -> tuple[Encoded, None]:
        """One layer; the second result is the (empty) scan output. Shapes: `related`."""
        quiet = self.deterministic
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        y = self.attention_norm(x)
        context = y[:, : bias.shape[-1]]
        y = self.attention.related(y, context, bias, relations, key_features, quiet)
        x = x + self.drop(y, deterministic=quiet)
        x = x + self.drop(self.mlp(self.mlp_norm(x), quiet), deterministic=quiet)
        return x, None
