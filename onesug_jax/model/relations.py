"""Relations between the items of a request, and attention with a bias by these relations.

An item is the enhanced prefix, a query of the history, or a candidate. Dot products of small
projections learn the similarity of items slowly, so it is an input. For head h, position i, key j,

    scores[h, i, j] = q_i . k_j + T5_relative[h, i - j] + sum_r a[h, r] * R_r[i, j] + b[h] . f(j)
    R_1 = cos(e*_i, e*_j)                         R_2 = words in common / words in either
    R_3 = words in common / words of the key      R_4 = 1 for the same query
    R_5 = cos(W e*_i, W e*_j)                     R_6 = cos(A e*_i, B e*_j)

where f(j) are features of the age of key j, R_3 is 1 if query i refines query j, and W, A, B are
learned: R_5 for queries of the same people, R_6 for queries that follow key j. A sink, a key with
value 0, receives the attention of a position without similar keys. A small MLP adds the attended
relations of each head, sum_j w[h, i, j] * R_r[i, j] and sum_j w[h, i, j], to the stream. PAPER.md
has no relations.
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
KEY_FEATURES = 7  # of a key: whether it is of the history, and `items.past_features`
_MAX_MULTIPLE = 8.0  # largest initial multiple of the cosine
_SINK = 4.0  # the sink's initial score: between those of a dissimilar and of a similar item
_ATTENDED_SCALE = 3.0  # scales the attended relations, at most 1, to the stream


def relations(
    vectors: ItemVectors,
    projections: Projections,
    words: ItemWords,
    weights: ItemWords,
    numbers: ItemIds,
    keys: int,
) -> Relations:
    """Relations of all positions to the first `keys` of them, float32 `[B, R, S, keys]`.

    Args:
      vectors: `[B, S, E]` unit vectors; 0 for positions that are no items.
      projections: `[3, E, P]`, the learned W, A and B.
      words: `[B, S, W]` hashed words, distinct in a query, padded with 0; weights: `[B, S, W]`.
      numbers: `[B, S]` query numbers + 1; 0 for positions that are no queries.
    """

    def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("bqe,bke->bqk", x, y[:, :keys], preferred_element_type=jnp.float32)

    projected = jnp.einsum("bqe,nep->nbqp", vectors, projections)
    squares = jnp.sum(jnp.square(projected), axis=-1, keepdims=True)
    alike, later, sooner = projected / jnp.sqrt(squares + 1e-6)
    same = (numbers[:, :, None] == numbers[:, None, :keys]) & (numbers[:, :, None] > 0)
    shared, contained = overlaps(words, weights, words[:, :keys], weights[:, :keys])
    kinds = [cosine(vectors, vectors), shared, contained, same.astype(jnp.float32)]
    kinds += [cosine(alike, alike), cosine(later, sooner)]
    # The barrier prevents recomputation in each layer.
    return jax.lax.optimization_barrier(jnp.stack(kinds, axis=1))


def overlaps(
    words: ItemWords, weights: ItemWords, key_words: ItemWords, key_weights: ItemWords
) -> tuple[jax.Array, jax.Array]:
    """Weight of the common words divided by that of the union, and by that of the key's words:
    `[B, Q, S]` each, 0 to 1.
    """
    # The barrier prevents a gather of the words in every iteration.
    words, weights, key_words = jax.lax.optimization_barrier((words, weights, key_words))
    common = jnp.zeros((*words.shape[:2], key_words.shape[1]))
    for i in range(words.shape[-1]):
        word = words[:, :, None, i]
        match = jnp.any(word[..., None] == key_words[:, None], axis=-1) & (word > 0)
        common += jnp.where(match, weights[:, :, None, i], 0.0)
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
        self.found_in = self.param(
            "found_in",
            logical(scaled_normal((kinds + 1) * heads), "relations", "heads", "embed"),
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
          bias: `[#B, #H, #Q, S]`: the mask and T5's relative positions.
          relations: `[B, R, I, J]`, of the last I positions, which are items, to the last J keys.
          key_features: `[B, J, KEY_FEATURES]`, of these keys.
        """
        text, text_keys = x.shape[1] - relations.shape[2], context.shape[1] - relations.shape[3]
        keys, values = self.keys_values(context)
        scores = jnp.einsum("bhqk,bhsk->bhqs", self.queries(x), keys).astype(jnp.float32)
        by_key = jnp.einsum("bsf,fh->bhs", key_features, self.key_bias)
        scores += jnp.pad(by_key, ((0, 0), (0, 0), (text_keys, 0)))[:, :, None] + bias
        by_relation = jnp.zeros(())
        for kind in range(len(RELATIONS)):  # XLA fuses these sums, but not a matrix product
            by_relation += relations[:, kind, None] * self.multiples[kind][:, None, None]
        scores += jnp.pad(by_relation, ((0, 0), (0, 0), (text, 0), (text_keys, 0)))
        sink = self.sink[:, None, None]
        highest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
        weights = jnp.exp(scores - highest)
        weights /= jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sink - highest)
        attended = jnp.einsum("bhqs,brqs->bqrh", weights[:, :, text:, text_keys:], relations)
        attended = jnp.pad(attended, ((0, 0), (text, 0), (0, 0), (0, 0)))
        total = jnp.moveaxis(jnp.sum(weights, axis=-1), 1, 2)[:, :, None]
        attended = _ATTENDED_SCALE * jnp.concatenate([attended, total], axis=2)
        weights = self.drop(weights.astype(values.dtype), deterministic=deterministic)
        mixed = jnp.einsum("bhqs,bhsk->bhqk", weights, values)
        out = jnp.einsum("bhqk,hkd->bqd", mixed, self.out.astype(mixed.dtype))
        hidden = nn.silu(jnp.einsum("bqrh,rhd->bqd", attended, self.found_in)).astype(out.dtype)
        return out + hidden @ self.found_out.astype(out.dtype)


def _multiples(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Initial multiples: of the cosine, from 0 to `_MAX_MULTIPLE` over the heads; else 1."""
    del key
    return jnp.ones(shape, dtype).at[0].set(jnp.linspace(0.0, _MAX_MULTIPLE, shape[1]))


class ItemLayer(nn.Module):
    """A layer of the encoder over text and items: `blocks.EncoderLayer` with relations.

    All positions attend to the context, the first positions of the stream: text, e_p* and history.
    So a candidate's state does not depend on other candidates, and the cost is linear in their
    number.
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
