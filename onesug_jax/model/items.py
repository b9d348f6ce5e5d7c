"""The items of a request as soft tokens of the encoder: candidates, history, enhanced prefix.

PAPER.md represents related and past queries as text. In a model with items
(`ModelConfig.vector_dim`), each of them is one soft token: a candidate has its as-of counts, a
query of the history has its age, and the relations between their vectors e_q* (`relations.py`)
carry their meaning. The vectors themselves are not added to the stream, because models overfit to
them on some ten thousand rows. Vectors and words are in tables on the device, so a request is a few
hundred integers and its counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF, ItemIds, Relations
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import logical, scaled_normal
from onesug_jax.model.relations import KEY_FEATURES, PROJECTIONS, relations

LEAST_LOG = -6.0  # log counts are clipped here: much less than one search
_SCALE = 0.25  # scales log counts to order one
_MINUTES = (10.0, 60.0, 1440.0)  # time scales of a visit, an hour, a day
_RANKED = (0, 2)  # columns of counts whose ranks are features


@flax.struct.dataclass
class ItemTables:
    """Vectors and words of queries and prefixes, on the device; row 0 is padding and 0.

    Attributes:
      vectors: `[N + 1, E]` unit vectors e_q*.
      words: `[N + 1, W]` int32, hashed distinct words of a query, padded with 0.
      word_weights: `[N + 1, W]` weight of each word in an overlap, padded with 0.
      lengths: `[N + 1]` characters of a query.
      prefix_vectors: `[P + 1, E]` unit vectors e_p.
    """

    vectors: jax.Array
    words: jax.Array
    word_weights: jax.Array
    lengths: jax.Array
    prefix_vectors: jax.Array


@flax.struct.dataclass
class Items:
    """The items of B requests, as rows of the tables; 0 at empty positions.

    Attributes:
      candidates: `[B, C]` int32; their order has no effect.
      counts: `[B, C, K]` logs of as-of counts: of searches at half-lives, of orders and item clicks
        that followed, and of searches for the (prefix, query); the last column is decayed.
      history: `[B, H]` int32; minutes: `[B, H]` float32, the age of each search.
      clock: `[B, 2]` int32, hour of the day and day of the week.
      prefix_row: `[B]` int32.
      typed: `[B]` int32, characters of the prefix.
    """

    candidates: ItemIds
    counts: jax.Array
    history: ItemIds
    minutes: jax.Array
    clock: jax.Array
    prefix_row: jax.Array
    typed: jax.Array

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Items | None:
        """From a batch whose features have the names of the attributes, except `candidate_counts`
        and `history_minutes`; None if the batch has no candidates.
        """
        if "candidates" not in batch:
            return None
        return cls(
            batch["candidates"],
            batch["candidate_counts"],
            batch["history"],
            batch["history_minutes"],
            batch["clock"],
            batch["prefix_row"],
            batch["typed"],
        )

    @property
    def rows(self) -> ItemIds:
        """The table rows of history and candidates in the order of the stream: `[B, H + C]`."""
        return jnp.concatenate([self.history, self.candidates], axis=1)


def example(config: ModelConfig) -> tuple[Items, ItemTables]:
    """Empty items of the smallest shapes, and tables of one query, for initialisation."""
    one = jnp.zeros((1, 1), jnp.int32)
    counts = jnp.zeros((1, 1, config.count_columns), jnp.float32)
    clock = jnp.zeros((1, 2), jnp.int32)
    items = Items(one, counts, one, one.astype(jnp.float32), clock, one[0], one[0])
    vectors, words = jnp.zeros((2, config.vector_dim)), jnp.zeros((2, 1), jnp.int32)
    weights = words.astype(jnp.float32)
    return items, ItemTables(vectors, words, weights, weights[:, 0], vectors)


def enhanced_prefix(items: Items, tables: ItemTables, weight: float) -> jax.Array:
    """e_p* `[B, E]`, of length 1: (1 - weight) e_p + weight times the mean of the candidates'
    vectors, weighted by their as-of search counts for this prefix (PAPER.md section 2, point 3).

    It is e_p without such searches, the mean for an unknown prefix, and 0 with neither.
    """
    mask = items.candidates > 0
    counts = jnp.where(mask, jnp.exp(jnp.maximum(items.counts[..., -2], -20.0)), 0.0)
    counts = jnp.where(counts > 0.5, counts, 0.0)
    total = jnp.sum(counts, axis=1, keepdims=True)
    share = counts / jnp.maximum(total, 1.0)
    mean = jnp.einsum("bc,bce->be", share, _rows(tables.vectors, items.candidates))
    own = _rows(tables.prefix_vectors, items.prefix_row)
    mixed = jnp.where(total > 0, (1 - weight) * own + weight * mean, own)
    length = jnp.linalg.norm(mixed, axis=-1, keepdims=True)
    return mixed / jnp.where(length > 0, length, 1.0)


def _rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of a table in float32: `[..., E]`."""
    return jnp.take(table, rows, axis=0).astype(jnp.float32)


def count_features(items: Items) -> jax.Array:
    """Features of each candidate's counts, scaled to order one: `[B, C, 3 K + 4]`.

    Logs of counts, their difference to the highest of the request, and logs of their shares. For
    two columns also the log of the rank, and whether it is at most ten, the length of most lists.
    """
    mask = (items.candidates > 0)[..., None]
    logs = clipped_logs(items)
    masked = jnp.where(mask, logs, NEG_INF)
    best = jnp.max(masked, axis=1, keepdims=True)
    share = jax.nn.log_softmax(masked, axis=1)
    ranked = masked[..., _RANKED]
    rank = 1.0 + jnp.sum(ranked[:, None] > ranked[:, :, None], axis=2)
    parts = [logs * _SCALE, (logs - best) * _SCALE, share * _SCALE, jnp.log(rank) * _SCALE]
    features = jnp.concatenate([*parts, (rank <= 10).astype(jnp.float32)], axis=-1)
    return jnp.where(mask, features, 0.0)


TEXT_FEATURES = 6


def text_features(items: Items, tables: ItemTables) -> jax.Array:
    """Features of each candidate's text, `[B, C, TEXT_FEATURES]`: logs of its length, of the
    characters that remain to be typed, and of those typed; its number of words, and the mean and
    the maximum of their weights, which measure rarity.
    """
    length = jnp.take(tables.lengths, items.candidates, axis=0).astype(jnp.float32)
    typed = jnp.broadcast_to(items.typed[:, None].astype(jnp.float32), length.shape)
    weights = _rows(tables.word_weights, items.candidates)
    words = jnp.sum(weights > 0, axis=-1)
    rare = [jnp.sum(weights, axis=-1) / jnp.maximum(words, 1), jnp.max(weights, axis=-1)]
    missing = jnp.maximum(length - typed, 0.0)
    logs = [jnp.log1p(x) for x in (length, missing, typed)]
    return _SCALE * jnp.stack([*logs, words.astype(jnp.float32), *rare], axis=-1)


def clipped_logs(items: Items) -> jax.Array:
    """The clipped logs of counts, `[B, C, K]`."""
    return jnp.maximum(items.counts.astype(jnp.float32), LEAST_LOG)


def past_features(minutes: jax.Array) -> jax.Array:
    """Features of the age and the position of H queries of a history, newest first: `[B, H, 6]`.

    exp(-age) at three time scales and the log of the age; exp(-position) and the log of the
    position, because people repeat their last searches at any age.
    """
    age = minutes.astype(jnp.float32)[..., None]
    position = jnp.broadcast_to(jnp.arange(minutes.shape[1], dtype=jnp.float32)[:, None], age.shape)
    recency = jnp.exp(-age / jnp.array(_MINUTES))
    parts = [recency, 0.2 * jnp.log1p(age), jnp.exp(-position), 0.3 * jnp.log1p(position)]
    return jnp.concatenate(parts, axis=-1)


@flax.struct.dataclass
class ItemRows:
    """The encoder's input for items: e_p*, H queries of the history and then C candidates.

    Attributes:
      rows: `[B, H + C, D]`, of history and candidates; clock: `[B, 1, D]`, added to the text.
      relations: `[B, R, 1 + H + C, 1 + H]`, of all items to e_p* and history.
      key_features: `[B, 1 + H, KEY_FEATURES]`.
    """

    rows: jax.Array
    clock: jax.Array
    relations: Relations
    key_features: jax.Array


class ItemReader(nn.Module):
    """Computes the rows of items in the encoder's stream, and their relations."""

    config: ModelConfig
    deterministic: bool

    def setup(self) -> None:
        """Declares the projections."""
        c = self.config
        width, features = c.d_model, 3 * c.count_columns + 2 * len(_RANKED) + TEXT_FEATURES

        def kernel(name: str, *shape: int) -> jax.Array:
            init = logical(scaled_normal(shape[0]), "features", "embed")
            return self.param(name, init, shape)

        self.counts_in, self.counts_out = (
            kernel("counts_in", features, width),
            kernel("counts_out", width, width),
        )
        self.counts_bias = self.param("bias", logical(nn.initializers.zeros, "embed"), (width,))
        self.ages = kernel("ages", KEY_FEATURES - 1, width)
        self.kinds = kernel("kinds", 2, width)  # the history's embedding, the candidates'
        self.hours, self.weekdays = kernel("hours", 24, width), kernel("weekdays", 7, width)
        self.projections = self.param(
            "projections",
            logical(scaled_normal(c.vector_dim), None, "soft", "features"),
            (PROJECTIONS, c.vector_dim, c.projected),
        )

    def __call__(self, items: Items, tables: ItemTables, enhanced: jax.Array) -> ItemRows:
        """See `ItemRows`; `enhanced [B, E]` is e_p*."""
        dtype = jnp.dtype(self.config.dtype)
        features = jnp.concatenate([count_features(items), text_features(items, tables)], axis=-1)
        hidden = features @ self.counts_in + self.counts_bias
        candidates = nn.silu(hidden) @ self.counts_out + self.kinds[1]
        ages = past_features(items.minutes)
        history = ages @ self.ages + self.kinds[0]
        rows = jnp.concatenate([history, candidates], axis=1)
        vectors = _rows(tables.vectors, items.rows)
        clock = jnp.take(self.hours, items.clock[:, :1], axis=0)
        clock += jnp.take(self.weekdays, items.clock[:, 1:], axis=0)

        def after_prefix(x: jax.Array) -> jax.Array:  # e_p* has no words, number or age: zeros
            return jnp.pad(x, ((0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)))

        related = relations(
            jnp.concatenate([enhanced[:, None], vectors], axis=1),
            self.projections,
            after_prefix(jnp.take(tables.words, items.rows, axis=0)),
            after_prefix(_rows(tables.word_weights, items.rows)),
            after_prefix(items.rows),
            1 + items.history.shape[1],
        )
        past = jnp.concatenate([jnp.ones_like(ages[..., :1]), ages], axis=-1)
        return ItemRows(rows.astype(dtype), clock.astype(dtype), related, after_prefix(past))
