"""The unified encoder-decoder: encode a request once, then score or write queries against it.

Training calls the model itself (`[B, L]` inputs and `[B, T]` shifted targets to logits). Decoding
uses three methods apart: `encode`, `cross_keys_values` (once a request, shared by all beams) and
`decode_step` (one position of K beams). Self-attention keys of the beams are kept append-only,
position by position and slot by slot; a table of ancestors says which slot wrote which position
of a beam's sequence, so no cache is ever copied or reordered when beams change places.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import (
    Ancestry,
    AttentionBias,
    BeamLogits,
    BeamTokens,
    CrossCache,
    Depths,
    Encoded,
    InputTokens,
    ListTokens,
    Logits,
    Mask,
    NodeScores,
    Paths,
    SegmentIds,
    SelfCache,
    SoftTokens,
    TargetTokens,
    TreeTokens,
)
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.copying import CopyHead, Places, Scores, written
from onesug_jax.model.layers import (
    MASKED,
    Attention,
    GatedMLP,
    RelativePositions,
    RMSNorm,
    length_dropout,
    logical,
    scaled_normal,
)

ACTIVATION_AXES = ("batch", "length", None)  # the stream: whole in width on every device


def as_bias(mask: Mask) -> AttentionBias:
    """`[B, Q, S]` booleans -> float32 `[B, 1, Q, S]`: 0 where visible, very negative where not."""
    return jnp.where(mask, 0.0, MASKED)[:, None].astype(jnp.float32)


class EncoderLayer(nn.Module):
    """Self-attention and gated MLP, each behind an RMSNorm and added to the stream."""

    config: ModelConfig
    deterministic: bool

    def setup(self):
        """Declares the blocks."""
        dtype = jnp.dtype(self.config.dtype)
        if self.config.positions_per_layer:
            self.positions = RelativePositions(self.config, bidirectional=True)
        self.attention_norm, self.mlp_norm = RMSNorm(dtype), RMSNorm(dtype)
        self.attention, self.mlp = Attention(self.config), GatedMLP(self.config)
        self.drop = length_dropout(self.config.dropout)

    def __call__(
        self, x: Encoded, bias: AttentionBias, positions: jax.Array
    ) -> tuple[Encoded, None]:
        """One layer; the second result is the (empty) scan output.

        `positions [L]` are for a table of the layer's own; a shared one is part of `bias` already.
        """
        quiet = self.deterministic
        if self.config.positions_per_layer:
            bias = bias + self.positions(positions, positions)
        x = nn.with_logical_constraint(x, ACTIVATION_AXES)
        y = self.attention_norm(x)
        x = x + self.drop(self.attention(y, y, bias, quiet), deterministic=quiet)
        x = x + self.drop(self.mlp(self.mlp_norm(x), quiet), deterministic=quiet)
        return x, None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the request, gated MLP."""

    config: ModelConfig
    deterministic: bool

    def setup(self):
        """Declares the blocks."""
        dtype = jnp.dtype(self.config.dtype)
        if self.config.positions_per_layer:
            self.positions = RelativePositions(self.config, bidirectional=False)
        self.self_norm, self.cross_norm, self.mlp_norm = (RMSNorm(dtype) for _ in range(3))
        self.self_attention = Attention(self.config)
        self.cross_attention = Attention(self.config)
        self.mlp = GatedMLP(self.config)
        self.drop = length_dropout(self.config.dropout)

    def __call__(self, x, encoded, self_bias, cross_bias, positions) -> tuple[jax.Array, None]:
        """All positions of a request's targets at once: `x [B, C * T, D]`, `encoded [B, L, D]`.

        Targets, each of T positions as `self_bias [#B, #H, T, T]` says, look only at themselves,
        and all of them at the request, whose keys and values are computed once. `positions [T]` are
        for a table of the layer's own; a shared one is part of `self_bias` already.
        """
        quiet = self.deterministic
        if self.config.positions_per_layer:
            self_bias = self_bias + self.positions(positions, positions)
        x = nn.with_logical_constraint(x, ACTIVATION_AXES)
        y = self.self_norm(x).reshape(-1, self_bias.shape[-1], x.shape[-1])
        y = self.self_attention(y, y, self_bias, quiet).reshape(x.shape)
        x = x + self.drop(y, deterministic=quiet)
        y = self.cross_attention(self.cross_norm(x), encoded, cross_bias, quiet)
        x = x + self.drop(y, deterministic=quiet)
        x = x + self.drop(self.mlp(self.mlp_norm(x), quiet), deterministic=quiet)
        return x, None

    def cross_keys_values(self, carry: None, encoded: Encoded):
        """This layer's cross-attention keys and values, `[B, L, H, head_dim]` each."""
        return carry, self.cross_attention.keys_values(encoded)

    def step(self, x, self_keys, self_values, cross_keys, cross_values, self_bias, cross_bias, t):
        """One position of K beams.

        Args:
          x: `[B, K, D]`, the beams' stream at position `t`.
          self_keys, self_values: `[B, T, S, H, head_dim]`, append-only cache of S >= K slots.
          cross_keys, cross_values: `[B, L, H, head_dim]`, one copy a request.
          self_bias: `[B, #H, K, T * S]`: relative position (where the layers share a table of it),
            future, and ancestry in one.
          cross_bias: `[B, 1, 1, L]`.
          t: the position, a traced integer.

        Returns:
          the stream, and the cache with position `t` written.
        """
        if self.config.positions_per_layer:
            self_bias = self_bias + _over_slots(self.positions, t, *self_keys.shape[1:3])
        y = self.self_norm(x)
        keys, values = self.self_attention.keys_values(y)
        at = (0, t, 0, 0, 0)
        self_keys = jax.lax.dynamic_update_slice(self_keys, keys[:, None], at)
        self_values = jax.lax.dynamic_update_slice(self_values, values[:, None], at)
        flat = (x.shape[0], -1, *self_keys.shape[3:])
        x = x + self.self_attention.attend(
            self.self_attention.queries(y),
            self_keys.reshape(flat),
            self_values.reshape(flat),
            self_bias,
        )
        queries = self.cross_attention.queries(self.cross_norm(x))
        x = x + self.cross_attention.attend(queries, cross_keys, cross_values, cross_bias)
        x = x + self.mlp(self.mlp_norm(x), True)
        return x, (self_keys, self_values)

    def tree(self, x, cross_keys, cross_values, paths, depths, self_bias, cross_bias):
        """All nodes of a request's tree at once, each seeing the nodes on its path and the request.

        Args:
          x: `[B, M, D]`, the nodes' stream.
          cross_keys, cross_values: `[B, L, H, head_dim]`.
          paths: `[B, M, T]`; depths: `[B, M]`.
          self_bias: `[B, #H, M, T]`: what a path does not hold, and relative position (where the
            layers share a table of it).
          cross_bias: `[B, 1, 1, L]`.
        """
        if self.config.positions_per_layer:
            self_bias = self_bias + _along_paths(self.positions, depths, paths.shape[2])
        y = self.self_norm(x)
        x = x + self.self_attention.attend_paths(
            self.self_attention.queries(y), *self.self_attention.keys_values(y), paths, self_bias
        )
        queries = self.cross_attention.queries(self.cross_norm(x))
        x = x + self.cross_attention.attend(queries, cross_keys, cross_values, cross_bias)
        x = x + self.mlp(self.mlp_norm(x), True)
        return x, None


def _along_paths(positions: RelativePositions, depths: Depths, length: int) -> jax.Array:
    """The bias of nodes at `depths [B, M]` towards each depth of their paths, `[B, H, M, length]`."""
    steps = jnp.arange(length)
    table = positions(steps, steps)[0]  # [H, T, T]
    return jnp.swapaxes(jnp.take(table, depths, axis=1), 0, 1)


def _over_slots(positions: RelativePositions, t: jax.Array, length: int, slots: int) -> jax.Array:
    """The bias of position `t` towards every cached key: `[1, H, 1, length * slots]`."""
    distance = positions(t[None], jnp.arange(length))
    return jnp.repeat(distance, slots, axis=-1)


def _stacked(layer: type[nn.Module], config: ModelConfig, length: int, methods: dict) -> type:
    """`length` layers as one module whose parameters carry a leading `layers` axis."""
    shared = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": length,
        "unroll": length if config.unroll else 1,
        "metadata_params": {nn.PARTITION_NAME: "layers"},
    }
    return nn.scan(layer, methods={name: shared | axes for name, axes in methods.items()})


def _with_remat(layer: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """Applies the configured recomputation to a layer's training pass."""
    if config.remat == "none":
        return layer
    policy = {"full": None, "dots": jax.checkpoint_policies.dots_saveable}[config.remat]
    return nn.remat(layer, policy=policy, prevent_cse=config.unroll, methods=("__call__",))


class Seq2Seq(nn.Module):
    """Encoder-decoder over one shared token table; see the module docstring for its methods."""

    config: ModelConfig
    deterministic: bool = True

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
        if c.soft_dim:
            self.soft_projection = self.param(
                "soft_projection",
                logical(scaled_normal(c.d_model), "soft", "embed"),
                (c.soft_dim, c.d_model),
            )
        if not c.positions_per_layer:
            self.encoder_positions = RelativePositions(c, bidirectional=True)
            self.decoder_positions = RelativePositions(c, bidirectional=False)
        encoder = _stacked(
            _with_remat(EncoderLayer, c),
            c,
            c.encoder_layers,
            {"__call__": {"in_axes": broadcast}},
        )
        decoder = _stacked(
            _with_remat(DecoderLayer, c),
            c,
            c.decoder_layers,
            {
                "__call__": {"in_axes": broadcast},
                "cross_keys_values": {"in_axes": broadcast},
                "step": {"in_axes": (0, 0, 0, 0, broadcast, broadcast, broadcast)},
                "tree": {"in_axes": (0, 0, *[broadcast] * 4)},
            },
        )
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
        if c.copying:
            self.copy_head = CopyHead(c)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """Rows of the token table, scaled by sqrt(d_model), in the compute type, `[..., D]`.

        Stored that much smaller, a row moves as fast as any kernel under AdamW, whose steps do not
        grow with what they change; stored at T5's scale it hardly moves in a short training.
        """
        scale = self.config.d_model**0.5
        rows = (jnp.take(self.embedding, tokens, axis=0) * scale).astype(self.config.dtype)
        rows = nn.with_logical_constraint(rows, ACTIVATION_AXES)
        return self.drop(rows, deterministic=self.deterministic)

    def _kernel(self) -> jax.Array:
        """The output head, `[D, V]`."""
        return self.embedding.T if self.config.tie_embeddings else self.head

    def _scores(self, x: jax.Array, mask: Mask, places: Places | None) -> Scores:
        """Of states `[B, Q, D]`; `mask [B, #Q, L]`: what of the input each may copy."""
        x = self.drop(self.decoder_norm(x), deterministic=self.deterministic)
        kernel = self._kernel().astype(x.dtype)
        scores = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return Scores(scores) if places is None else self.copy_head(scores, x, places, mask)

    def places(self, encoded: Encoded, tokens: InputTokens) -> Places | None:
        """What may be copied, once a request; None where the model does not copy."""
        return self.copy_head.places(encoded, tokens) if self.config.copying else None

    def _soften(self, rows: jax.Array, tokens: InputTokens, soft: SoftTokens) -> jax.Array:
        """`rows [B, L, D]` with the n-th soft token's row replaced by the n-th projected vector.

        The projection is stored and scaled as the token table is (`_embed`).
        """
        places = tokens == self.config.soft_id
        number = jnp.clip(jnp.cumsum(places, axis=1) - 1, 0, soft.shape[1] - 1)
        vectors = (soft @ self.soft_projection * self.config.d_model**0.5).astype(rows.dtype)
        vectors = jnp.take_along_axis(vectors, number[..., None], axis=1)
        return jnp.where(places[..., None], vectors, rows)

    def _segments(self, rows: jax.Array, tokens: InputTokens) -> jax.Array:
        """`rows [B, L, D]` with the row of each token's marker, the nearest one before it, added.

        Markers and padding stay as they are, and so do tokens that no marker stands before.
        """
        c = self.config
        marker = (tokens >= c.first_marker) & (tokens <= c.last_marker)
        place = jax.lax.cummax(jnp.where(marker, jnp.arange(tokens.shape[1]), 0), axis=1)
        opener = jnp.take_along_axis(jnp.where(marker, tokens, 0), place, axis=1)
        belongs = (opener > 0) & (tokens > 0) & ~marker
        return rows + jnp.where(belongs[..., None], self._embed(opener), 0)

    def encode(
        self,
        tokens: InputTokens,
        segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
    ) -> Encoded:
        """Reads the request: `[B, L] -> [B, L, D]`; padding (0) is never attended to.

        `soft` holds the enhanced prefixes e_p* (PAPER.md section 2.3), one a soft token.
        """
        segments = tokens > 0 if segments is None else segments
        positions = jnp.arange(tokens.shape[1])
        mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
        bias = as_bias(mask)
        if not self.config.positions_per_layer:
            bias = bias + self.encoder_positions(positions, positions)
        x = self._embed(tokens)
        if self.config.segments:
            x = self._segments(x, tokens)
        if self.config.soft_dim and soft is not None:
            x = self._soften(x, tokens, soft)
        x, _ = self.encoder(x, bias, positions)
        return self.drop(self.encoder_norm(x), deterministic=self.deterministic)

    def _self_bias(self, mask: Mask, positions: jax.Array) -> AttentionBias:
        """The decoder's self-attention bias for `mask [#B, T, T]`: `[#B, #H, T, T]`."""
        bias = as_bias(mask)
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
    ) -> Scores:
        """Scores every next token of the shifted targets `[B, T]`."""
        segments = (tokens > 0).astype(jnp.int32) if segments is None else segments
        if decoder_segments is None:
            decoder_segments = jnp.ones_like(decoder_inputs)
        positions = jnp.arange(decoder_inputs.shape[1])
        causal = positions[:, None] >= positions[None, :]
        own = decoder_segments[:, :, None] == decoder_segments[:, None, :]
        self_bias = self._self_bias(own & causal, positions)
        cross = decoder_segments[:, :, None] == segments[:, None, :]
        cross &= (segments > 0)[:, None, :]
        x = self._embed(decoder_inputs)
        x, _ = self.decoder(x, encoded, self_bias, as_bias(cross), positions)
        # A packed example's first place has the state of another example before it.
        copied = cross & (segments == jnp.roll(segments, 1, axis=1))[:, None, :]
        return self._scores(x, copied, self.places(encoded, tokens))

    def decode_lists(
        self, encoded: Encoded, tokens: InputTokens, decoder_inputs: ListTokens
    ) -> Scores:
        """`decode` for C targets of every request, `[B, C, T]`: scores of C * T states.

        The request is encoded, and turned into cross-attention keys and values, once for all.
        """
        requests, targets, length = decoder_inputs.shape
        positions = jnp.arange(length)
        causal = positions[:, None] >= positions[None, :]
        self_bias = self._self_bias(causal[None], positions)
        given = (tokens > 0)[:, None, :]
        flat = decoder_inputs.reshape(requests, targets * length)
        x = self._embed(flat)
        x, _ = self.decoder(x, encoded, self_bias, as_bias(given), positions)
        return self._scores(x, given, self.places(encoded, tokens))

    def __call__(
        self,
        tokens: InputTokens,
        decoder_inputs: TargetTokens,
        segments: SegmentIds | None = None,
        decoder_segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
    ) -> Logits:
        """Teacher-forced logits `[B, T, V]` (float32); segments only for packed rows."""
        return self.score(tokens, decoder_inputs, segments, decoder_segments, soft).logits()

    def score(
        self,
        tokens: InputTokens,
        decoder_inputs: TargetTokens,
        segments: SegmentIds | None = None,
        decoder_segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
    ) -> Scores:
        """What `__call__` gives, before vocabulary and places are one: cheaper to train on."""
        encoded = self.encode(tokens, segments, soft)
        return self.decode(encoded, tokens, decoder_inputs, segments, decoder_segments)

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
        places: Places | None,
        tokens: InputTokens,
    ) -> tuple[BeamLogits, tuple[SelfCache, SelfCache]]:
        """One position of K beams: next-token logits `[B, K, V]` and the cache with `t` written.

        Beam k sees position s <= t of slot `ancestry[b, k, s]`. All `T * S` cached keys are
        scored in one product and the strangers masked: at beam widths in use this is cheaper
        than gathering each beam's own keys, and nothing is moved.
        """
        slots = self_cache[0].shape[3]
        length = ancestry.shape[2]
        own = ancestry[:, :, :, None] == jnp.arange(slots)  # [B, K, T, S]
        past = (jnp.arange(length) <= t)[None, None, :, None]
        bias = jnp.where(own & past, 0.0, MASKED)[:, None]  # [B, 1, K, T, S]
        bias = bias.reshape(*bias.shape[:3], length * slots)  # [B, 1, K, T * S]
        if not self.config.positions_per_layer:
            bias = bias + _over_slots(self.decoder_positions, t, length, slots)  # [B, H, K, T * S]
        given = (tokens > 0)[:, None, :]
        x, self_cache = self.decoder.step(
            self._embed(beam_tokens), *self_cache, *cross, bias, as_bias(given), t
        )
        return self._scores(x, given, places).logits(), self_cache

    def tree_scores(
        self,
        nodes: TreeTokens,
        depths: Depths,
        paths: Paths,
        cross: tuple[CrossCache, CrossCache],
        places: Places | None,
        tokens: InputTokens,
    ) -> NodeScores:
        """Log-probability of ending at each node of a tree of beginnings, `[B, M]`, in one pass.

        Node m stands for the output `nodes[b, paths[b, m, 1 : depths[b, m] + 1]]`; its score is that
        of this output and the end of sequence behind it. Outputs that begin alike share nodes, so
        what they have in common is computed once; the vocabulary is scored some nodes at a time.
        """
        steps = jnp.arange(paths.shape[2])
        bias = as_bias(steps <= depths[..., None])
        if not self.config.positions_per_layer:
            bias = bias + _along_paths(self.decoder_positions, depths, len(steps))
        given = (tokens > 0)[:, None, :]
        x = self._embed(nodes)
        x, _ = self.decoder.tree(x, *cross, paths, depths, bias, as_bias(given))
        x = self.decoder_norm(x)
        kernel = self._kernel().astype(x.dtype)
        total = _normalisers(x, kernel)
        parents = jnp.take_along_axis(paths, jnp.maximum(depths - 1, 0)[..., None], axis=2)[..., 0]
        pick = jax.vmap(lambda rows, picks: rows[picks])
        before = pick(x, parents)
        wide = {"preferred_element_type": jnp.float32}
        step = jnp.einsum("bmd,bmd->bm", before, jnp.moveaxis(kernel[:, nodes], 0, -1), **wide)
        end = jnp.einsum("bmd,d->bm", x, kernel[:, self.config.end_id], **wide)
        if places is not None:
            copies = self.copy_head.copies(x, places, given)
            total = jnp.logaddexp(total, jax.nn.logsumexp(copies, axis=-1))
            step = jnp.logaddexp(step, written(pick(copies, parents), places, nodes))
            end = jnp.logaddexp(
                end, written(copies, places, jnp.full_like(nodes, self.config.end_id))
            )
        step = jnp.where(depths > 0, step - jnp.take_along_axis(total, parents, axis=1), 0.0)
        along = jnp.where(steps <= depths[..., None], pick(step, paths), 0.0)
        return jnp.sum(along, axis=-1) + end - total


_HEAD_ROWS = 2048  # states whose scores of the whole vocabulary are held at a time


def _normalisers(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`logsumexp(x @ kernel)` of states `[B, M, D]`, float32 `[B, M]`, in blocks of states."""
    batch, nodes, width = x.shape
    block = max(_HEAD_ROWS // batch, 1)
    blocks = -(-nodes // block)

    def one(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.matmul(x, kernel, preferred_element_type=jnp.float32), axis=-1)

    if blocks == 1:
        return one(x)
    x = jnp.pad(x, ((0, 0), (0, blocks * block - nodes), (0, 0)))
    x = jnp.moveaxis(x.reshape(batch, blocks, block, width), 1, 0)
    return jnp.moveaxis(jax.lax.map(one, x), 0, 1).reshape(batch, -1)[:, :nodes]
