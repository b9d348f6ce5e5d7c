"""The unified encoder-decoder: encode a request once, then score or write queries against it.

Training calls the model itself (`[B, L]` inputs and `[B, T]` shifted targets to logits). Decoding
uses three methods: `encode`, `cross_keys_values` (once a request, shared by all beams) and
`decode_step` (one position of K beams). Self-attention keys of the beams are cached append-only,
position by position and slot by slot; a table of ancestors says which slot wrote which position
of a beam's sequence, so no cache is ever copied or reordered when beams change places.
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
from onesug_jax.model.blocks import (
    ACTIVATION_AXES,
    DecoderLayer,
    EncoderLayer,
    as_bias,
    over_slots,
    stacked,
    with_remat,
)
from onesug_jax.model.candidates import CandidateHead, Opening
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import ItemReader, Items, ItemTables, enhanced_prefix, example
from onesug_jax.model.layers import (
    RelativePositions,
    RMSNorm,
    length_dropout,
    logical,
    scaled_normal,
)
from onesug_jax.model.relations import ItemLayer
from onesug_jax.model.scores import Scores
from onesug_jax.model.text_inputs import openers, soften
from onesug_jax.model.unrolled import UnrolledLayers


class Seq2Seq(nn.Module):
    """Encoder-decoder over one shared token table; see the module docstring for its methods.

    Attributes:
      unrolled: whether each layer has parameters of its own (`for_decoding`); not for training.

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

    config: ModelConfig
    deterministic: bool = True
    unrolled: bool = False

    def setup(self):
        """Declares tables, stacks and norms."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        broadcast = nn.broadcast
        self.embedding = self.param(
            "embedding",
            logical(scaled_normal(c.d_model), "vocab", "embed"),
            (c.vocab_size, c.d_model),
        )
        if soft := c.vector_dim or c.soft_dim:
            self.soft_projection = self.param(
                "soft_projection",
                logical(scaled_normal(c.d_model), "soft", "embed"),
                (soft, c.d_model),
            )
        if not c.positions_per_layer:
            self.encoder_positions = RelativePositions(c, bidirectional=True)
            self.decoder_positions = RelativePositions(c, bidirectional=False)
        layer = ItemLayer if c.vector_dim else EncoderLayer
        if self.unrolled:
            self.encoder = UnrolledLayers(layer, c, c.encoder_layers)
            self.decoder = UnrolledLayers(DecoderLayer, c, c.decoder_layers)
        else:
            whole = {"__call__": broadcast}
            axes = {**whole, "cross_keys_values": broadcast, "step": (0, 0, 0, 0, *[broadcast] * 4)}
            encoder = stacked(with_remat(layer, c), c, c.encoder_layers, whole)
            decoder = stacked(with_remat(DecoderLayer, c), c, c.decoder_layers, axes)
            self.encoder = encoder(c, self.deterministic)
            self.decoder = decoder(c, self.deterministic)
        self.encoder_norm, self.decoder_norm = RMSNorm(dtype), RMSNorm(dtype)
        self.drop = length_dropout(c.dropout)
        if not c.tie_embeddings:
            self.head = self.param(
                "head",
                logical(scaled_normal(c.d_model), "embed", "vocab"),
                (c.d_model, c.vocab_size),
            )
        if c.vector_dim:
            self.items = ItemReader(c, self.deterministic)
        if c.writes_candidates:
            self.candidate_head = CandidateHead(c)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """Rows of the token table, scaled by sqrt(d_model), in the compute type, `[..., D]`.

        Stored that much smaller, a row moves as fast as any kernel under AdamW, whose steps do not
        grow with what they change; stored at T5's scale it hardly moves in a short training.
        """
        # The table's gradient too: every device adds up its own rows, then they are summed. Without
        # it, what is laid out in pieces later makes every device gather the rows of all others.
        table = nn.with_logical_constraint(self.embedding, ("vocab", "embed"))
        scale = self.config.d_model**0.5
        rows = (jnp.take(table, tokens, axis=0) * scale).astype(self.config.dtype)
        return nn.with_logical_constraint(rows, ACTIVATION_AXES)

    def _scores(self, x: jax.Array) -> Scores:
        """Of states `[B, Q, D]`."""
        x = self.drop(self.decoder_norm(x), deterministic=self.deterministic)
        kernel = self.embedding.T if self.config.tie_embeddings else self.head
        return Scores(jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32))

    def look_up(
        self, tokens: InputTokens, decoder_inputs: TargetTokens
    ) -> tuple[TokenRows, TokenRows]:
        """Rows for `encode`, `[B, L, D]`, and for `decode`, `[B, T, D]`, by one gather, whose
        gradient is one scatter-add; those of the text with segments.
        """
        opener = tokens[:, :0]
        if self.config.segments:
            opener = openers(tokens, self.config.first_marker, self.config.last_marker)
        ids = [tokens, opener, decoder_inputs]
        ends = [tokens.shape[1], tokens.shape[1] + opener.shape[1]]
        rows, of_opener, of_targets = jnp.split(self._embed(jnp.concatenate(ids, 1)), ends, axis=1)
        rows = self.drop(rows, deterministic=self.deterministic)
        if self.config.segments:
            of_opener = jnp.where((opener > 0)[..., None], of_opener, 0)
            rows += self.drop(of_opener, deterministic=self.deterministic)
        return rows, of_targets

    def encode(
        self,
        tokens: InputTokens,
        segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
        items: Items | None = None,
        tables: ItemTables | None = None,
        rows: TokenRows | None = None,
    ) -> Encoded:
        """Reads the request: `[B, L] -> [B, L, D]`; padding (0) is never attended to.

        `soft` holds the enhanced prefixes e_p* (PAPER.md section 2.3), one a soft token. A model
        with items reads them too, and makes e_p* itself: `[B, L + 1 + H + C, D]`, text, e_p*,
        history and candidates. Whoever attends to that masks by `given` instead of by the tokens.
        `rows` are what `look_up` gives, if that was called before; the soft projection is stored
        and scaled as the token table is.
        """
        c = self.config
        x = self.look_up(tokens, tokens[:, :0])[0] if rows is None else rows
        if c.vector_dim:
            assert items is not None and tables is not None, "a model with items reads items"
            return self._encode_items(x, tokens, items, tables)
        if soft is not None and c.soft_dim:
            x = soften(x, tokens, soft @ self.soft_projection * c.d_model**0.5, c.soft_id)
        segments = tokens > 0 if segments is None else segments
        positions = jnp.arange(tokens.shape[1])
        bias = as_bias((segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0))
        if not c.positions_per_layer:
            bias = bias + self.encoder_positions(positions, positions)
        x, _ = self.encoder(x, bias, positions)
        return self.drop(self.encoder_norm(x), deterministic=self.deterministic)

    def _encode_items(
        self, x: TokenRows, tokens: InputTokens, items: Items, tables: ItemTables
    ) -> Encoded:
        """`encode` of text and items; all of it attends to text, e_p* and history."""
        positions = jnp.arange(tokens.shape[1])
        enhanced = enhanced_prefix(items, tables, self.config.enhance)
        if not self.config.enhanced_prefix:
            enhanced = jnp.zeros_like(enhanced)
        read = self.items(items, tables, enhanced)
        x = x.at[:, :1].add(read.clock)
        soft = enhanced @ self.soft_projection * self.config.d_model**0.5
        rows = jnp.concatenate([soft[:, None].astype(x.dtype), read.rows], axis=1)
        x = jnp.concatenate([x, self.drop(rows, deterministic=self.deterministic)], axis=1)
        seen = self.given(tokens, items)[:, : x.shape[1] - items.candidates.shape[1]] > 0
        distance = self.encoder_positions(positions, positions)
        text = tokens.shape[1]
        room = [(0, 0), (0, 0), *((0, size - text) for size in (x.shape[1], seen.shape[1]))]
        bias = as_bias(seen[:, None]) + jnp.pad(distance, room)
        alike = read.relations if self.config.relations else jnp.zeros_like(read.relations)
        x, _ = self.encoder(x, bias, alike, read.key_features)
        return self.drop(self.encoder_norm(x), deterministic=self.deterministic)

    def given(self, tokens: InputTokens, items: Items | None = None) -> InputTokens:
        """What `encode` makes states of, nonzero where one may be attended to: `[B, S]`."""
        if not self.config.vector_dim:
            return tokens
        assert items is not None, "a model with items reads items"
        there = jnp.full_like(tokens[:, :1], self.config.enhanced_prefix)
        return jnp.concatenate([tokens, there, items.rows], axis=1)

    def opening(
        self, encoded: Encoded, given: InputTokens, items: Items, rows: TokenRows | None = None
    ) -> Opening:
        """What the first softmax says of the candidates: one step of the decoder, `Opening`."""
        start = jnp.zeros((len(given), 1), jnp.int32)
        scores = self.decode(encoded, given, start, items=items, rows=rows)
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
        assert items is not None, "a model with candidate tokens reads items"
        candidates = self.candidate_head(self.decoder_norm(x[:, 0]), encoded, items)
        mass = jax.nn.logsumexp(candidates, axis=-1)[:, None]
        mass = jnp.where(jnp.arange(x.shape[1]) == 0, mass, NEG_INF)
        return Scores(scores.vocabulary, candidates, mass)

    def _causal_bias(self, positions: jax.Array, own: Mask | bool = True) -> AttentionBias:
        """The decoder's self-attention bias, `[#B, #H, T, T]`, within `own [#B, T, T]`."""
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
        """Scores every next token of the shifted targets `[B, T]`; of a model with items, `tokens`
        are what `given` gives. `rows` are the targets', if `look_up` was called before.
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

        The request is encoded, and turned into cross-attention keys and values, once for all.
        """
        requests, _, length = decoder_inputs.shape
        text, x = self.look_up(tokens, decoder_inputs.reshape(requests, -1))
        encoded = self.encode(tokens, None, soft, rows=text)
        positions = jnp.arange(length)
        x = self.drop(x, deterministic=self.deterministic)
        given = as_bias((tokens > 0)[:, None, :])
        x, _ = self.decoder(x, encoded, self._causal_bias(positions), given, positions)
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
        given = self.given(tokens, items)
        decoded = (decoder_inputs, segments, decoder_segments, items, targets)
        return self.decode(encoded, given, *decoded)

    def cross_keys_values(self, encoded: Encoded) -> tuple[CrossCache, CrossCache]:
        """Cross-attention keys and values of all layers, once a request."""
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
        """One position of K beams: next-token scores of K states and the cache with `t` written.

        Beam k sees position s <= t of slot `ancestry[b, k, s]`. All `T * S` cached keys are
        scored in one product and the strangers masked: at beam widths in use this is cheaper
        than gathering each beam's own keys, and nothing is moved. `mass [B]` of candidate tokens
        (`Opening`) belongs to the softmax of the first position.
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
        given = (tokens > 0)[:, None, :]
        x, self_cache = self.decoder.step(
            self._embed(beam_tokens), *self_cache, *cross, bias, distance, as_bias(given), t
        )
        scores = self._scores(x)
        if mass is not None:
            scores = dataclasses.replace(scores, mass=jnp.where(t == 0, mass, NEG_INF)[:, None])
        return scores, self_cache

    def empty_cache(self, batch: int, length: int, slots: int) -> tuple[Any, Any]:
        """Keys and values of no beam yet, for `length` positions of `slots` beams: a `SelfCache`
        each, or, where layers are unrolled, a layer's `[B, H, T, K, head_dim]` after another.
        """
        c = self.config
        shape = (batch, c.num_heads, length, slots, c.head_dim)
        if self.unrolled:
            each = tuple(jnp.zeros(shape, jnp.dtype(c.dtype)) for _ in range(c.decoder_layers))
            return each, each
        every = jnp.zeros((c.decoder_layers, *shape), jnp.dtype(c.dtype))
        return every, every


def initial(config: ModelConfig, key: jax.Array) -> Any:
    """Fresh parameters, with the names of their axes."""
    tokens = jnp.ones((1, 8), jnp.int32)
    items = tables = None
    if config.vector_dim:
        items, tables = example(config)
    return Seq2Seq(config).init(key, tokens, tokens, items=items, tables=tables)["params"]
