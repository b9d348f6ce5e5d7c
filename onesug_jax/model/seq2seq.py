"""The unified encoder-decoder: it encodes a request once, then scores or decodes queries.

`request_reader.py` is the encoder; this file adds the decoder. Training calls the model itself
(`[B, L]` inputs and `[B, T]` shifted targets to logits). Decoding uses `encode`,
`cross_keys_values` (once per request) and `decode_step` (one position of K beams). The cache of
self-attention keys is append-only, with a slot for each beam at each position. A table of ancestors
contains the slot of each position of a beam's sequence, so the cache is not copied or reordered
when beams change their order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import (
    NEG_INF,
    Ancestry,
    AttentionBias,
    BeamTokens,
    CrossCache,
    Encoded,
    InputTokens,
    ListTokens,
    Logits,
    Mask,
    SegmentIds,
    SelfCache,
    SoftTokens,
    TargetTokens,
    TokenRows,
)
from onesug_jax.model.blocks import DecoderLayer, as_bias, over_slots
from onesug_jax.model.candidates import CandidateHead, Opening
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import Items, ItemTables, example
from onesug_jax.model.layers import RelativePositions, RMSNorm, logical, scaled_normal
from onesug_jax.model.request_reader import RequestReader, layers_of
from onesug_jax.model.scores import Scores


class Seq2Seq(RequestReader):
    """Encoder-decoder over one shared token table; see the module docstring for its methods.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from onesug_jax import ModelConfig, Seq2Seq
      >>> model = Seq2Seq(ModelConfig(vocab_size=64, d_model=16, d_ff=32, encoder_layers=1))
      >>> tokens = jnp.array([[5, 6, 1, 0]])
      >>> variables = model.init(jax.random.key(0), tokens, tokens)
      >>> model.apply(variables, tokens, tokens).shape
      (1, 4, 64)
    """

    def setup(self):
        """Declares the decoder and its head."""
        super().setup()
        c = self.config
        if not c.positions_per_layer:
            self.decoder_positions = RelativePositions(c, bidirectional=False)
        axes = {
            "__call__": nn.broadcast,
            "cross_keys_values": nn.broadcast,
            "step": (0, 0, 0, 0, *[nn.broadcast] * 4),
        }
        self.decoder = layers_of(self, DecoderLayer, c.decoder_layers, axes)
        self.decoder_norm = RMSNorm(jnp.dtype(c.dtype))
        if not c.tie_embeddings:
            self.head = self.param(
                "head",
                logical(scaled_normal(c.d_model), "embed", "vocab"),
                (c.d_model, c.vocab_size),
            )
        if c.writes_candidates:
            self.candidate_head = CandidateHead(c)

    def _scores(self, x: jax.Array) -> Scores:
        """Scores of states `[B, Q, D]`, without candidates."""
        x = self.drop(self.decoder_norm(x), deterministic=self.deterministic)
        kernel = self.embedding.T if self.config.tie_embeddings else self.head
        return Scores(jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32))

    def opening(
        self, encoded: Encoded, mask: InputTokens, items: Items, rows: TokenRows | None = None
    ) -> Opening:
        """The candidates in the first softmax, by one step of the decoder; `mask` is `given`'s."""
        start = jnp.zeros((len(mask), 1), jnp.int32)
        scores = self.decode(encoded, mask, start, items=items, rows=rows)
        assert scores.candidates is not None and scores.mass is not None
        logs = scores.candidates - scores.log_partition()[:, :1]
        logs = jnp.where(items.candidates > 0, logs, NEG_INF)
        return Opening(logs, scores.mass[:, 0])

    def _with_candidates(
        self, scores: Scores, x: jax.Array, encoded: Encoded, items: Items | None
    ) -> Scores:
        """`scores` of states `x`, with the request's candidates in the first softmax."""
        if not self.config.writes_candidates:
            return scores
        assert items is not None, "a model with candidate tokens needs items"
        candidates = self.candidate_head(self.decoder_norm(x[:, 0]), encoded, items)
        mass = jax.nn.logsumexp(candidates, axis=-1)[:, None]
        mass = jnp.where(jnp.arange(x.shape[1]) == 0, mass, NEG_INF)
        return Scores(scores.vocabulary, candidates, mass)

    def _causal_bias(self, positions: jax.Array, own: Mask | bool = True) -> AttentionBias:
        """The decoder's self-attention bias, `[#B, #H, T, T]`; also masked by `own [#B, T, T]`."""
        bias = as_bias((positions[:, None] >= positions[None, :])[None] & own)
        if self.config.positions_per_layer:
            return bias
        return bias + self.decoder_positions(positions, positions)

    def decode(
        self,
        encoded: Encoded,
        tokens: InputTokens,
        decoder_inputs: TargetTokens,
        segments: SegmentIds | None = None,
        decoder_segments: SegmentIds | None = None,
        items: Items | None = None,
        rows: TokenRows | None = None,
    ) -> Scores:
        """Scores of every next token of the shifted targets `[B, T]`.

        Args:
          tokens: the input tokens; for a model with items, the output of `given`.
          rows: the second output of `look_up`, if it was already computed.
        """
        segments = (tokens > 0).astype(jnp.int32) if segments is None else segments
        if decoder_segments is None:
            decoder_segments = jnp.ones_like(decoder_inputs)
        positions = jnp.arange(decoder_inputs.shape[1])
        own = decoder_segments[:, :, None] == decoder_segments[:, None, :]
        self_bias = self._causal_bias(positions, own)
        cross = decoder_segments[:, :, None] == segments[:, None, :]
        cross &= (segments > 0)[:, None, :]
        x = self._embed(decoder_inputs) if rows is None else rows
        x = self.drop(x, deterministic=self.deterministic)
        x, _ = self.decoder(x, encoded, self_bias, as_bias(cross), positions)
        return self._with_candidates(self._scores(x), x, encoded, items)

    def score_lists(
        self, tokens: InputTokens, decoder_inputs: ListTokens, soft: SoftTokens | None = None
    ) -> Scores:
        """`score` for C targets of every request, `[B, C, T]`: scores of C * T states.

        The request's states, and their cross-attention keys and values, are computed once.
        """
        requests, _, length = decoder_inputs.shape
        text, x = self.look_up(tokens, decoder_inputs.reshape(requests, -1))
        encoded = self.encode(tokens, None, soft, rows=text)
        positions = jnp.arange(length)
        x = self.drop(x, deterministic=self.deterministic)
        cross_bias = as_bias((tokens > 0)[:, None, :])
        x, _ = self.decoder(x, encoded, self._causal_bias(positions), cross_bias, positions)
        return self._scores(x)

    def __call__(
        self,
        tokens: InputTokens,
        decoder_inputs: TargetTokens,
        segments: SegmentIds | None = None,
        decoder_segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
        items: Items | None = None,
        tables: ItemTables | None = None,
    ) -> Logits:
        """Teacher-forced logits `[B, T, V]` (float32); segments only for packed rows."""
        scores = self.score(tokens, decoder_inputs, segments, decoder_segments, soft, items, tables)
        return scores.vocabulary

    def score(
        self,
        tokens: InputTokens,
        decoder_inputs: TargetTokens,
        segments: SegmentIds | None = None,
        decoder_segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
        items: Items | None = None,
        tables: ItemTables | None = None,
    ) -> Scores:
        """`__call__`, with the request's candidates in the first softmax, if there are any."""
        text, targets = self.look_up(tokens, decoder_inputs)
        encoded = self.encode(tokens, segments, soft, items, tables, text)
        inputs = (decoder_inputs, segments, decoder_segments, items, targets)
        return self.decode(encoded, self.given(tokens, items), *inputs)

    def cross_keys_values(self, encoded: Encoded) -> tuple[CrossCache, CrossCache]:
        """Cross-attention keys and values of all layers."""
        _, keys_values = self.decoder.cross_keys_values(None, encoded)
        return keys_values

    def decode_step(
        self,
        beam_tokens: BeamTokens,
        t: jax.Array,
        ancestry: Ancestry,
        self_cache: tuple[SelfCache, SelfCache],
        cross: tuple[CrossCache, CrossCache],
        tokens: InputTokens,
        mass: jax.Array | None = None,
    ) -> tuple[Scores, tuple[SelfCache, SelfCache]]:
        """One position of K beams: next-token scores of K states, and the cache with position `t`.

        Beam k attends to position s <= t of slot `ancestry[b, k, s]`. One product scores all
        `T * S` cached keys, and those of other beams are masked: at usual beam widths this is
        faster than gathering each beam's own keys. The softmax of the first position includes the
        `mass [B]` of candidate tokens (`Opening`).
        """
        length, slots = self_cache[0][0].shape[-3:-1]
        own = ancestry[:, :, :, None] == jnp.arange(slots)  # [B, K, T, S]
        past = (jnp.arange(length) <= t)[None, None, :, None]
        own = (own & past).reshape(*ancestry.shape[:2], length * slots)
        bias = as_bias(own)  # [B, 1, K, T * S]
        if self.config.positions_per_layer:
            distance = jnp.zeros((1, 1, 1, 1), jnp.float32)
        else:
            distance = over_slots(self.decoder_positions, t, length, slots)  # [1, H, 1, T * S]
        mask = (tokens > 0)[:, None, :]
        x, self_cache = self.decoder.step(
            self._embed(beam_tokens), *self_cache, *cross, bias, distance, as_bias(mask), t
        )
        scores = self._scores(x)
        if mass is not None:
            scores = dataclasses.replace(scores, mass=jnp.where(t == 0, mass, NEG_INF)[:, None])
        return scores, self_cache

    def empty_cache(self, batch: int, length: int, slots: int) -> tuple[Any, Any]:
        """An empty cache of keys and values for `length` positions of `slots` beams: two
        `SelfCache`s, or, with unrolled layers, two tuples of a `[B, H, T, K, head_dim]` per layer.
        """
        c = self.config
        shape = (batch, c.num_heads, length, slots, c.head_dim)
        if self.unrolled:
            layers = tuple(jnp.zeros(shape, jnp.dtype(c.dtype)) for _ in range(c.decoder_layers))
            return layers, layers
        cache = jnp.zeros((c.decoder_layers, *shape), jnp.dtype(c.dtype))
        return cache, cache


def initial(config: ModelConfig, key: jax.Array) -> Any:
    """Initial parameters, with the names of their axes."""
    tokens = jnp.ones((1, 8), jnp.int32)
    items = tables = None
    if config.vector_dim:
        items, tables = example(config)
    return Seq2Seq(config).init(key, tokens, tokens, items=items, tables=tables)["params"]
