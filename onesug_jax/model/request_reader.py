"""The half of the model that reads: tokens and items of a request, to what the decoder attends to.

Holds the token table, which reader and writer share. `seq2seq.py` adds the half that writes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onesug_jax.arrays import Encoded, InputTokens, SegmentIds, SoftTokens, TargetTokens, TokenRows
from onesug_jax.model.blocks import ACTIVATION_AXES, EncoderLayer, as_bias, stacked, with_remat
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import ItemReader, Items, ItemTables, enhanced_prefix
from onesug_jax.model.layers import (
    RelativePositions,
    RMSNorm,
    length_dropout,
    logical,
    scaled_normal,
)
from onesug_jax.model.relations import ItemLayer
from onesug_jax.model.text_inputs import openers, soften
from onesug_jax.model.unrolled import UnrolledLayers


class RequestReader(nn.Module):
    """Token table and encoder.

    Attributes:
      unrolled: whether each layer has parameters of its own (`for_decoding`); not for training.
    """

    config: ModelConfig
    deterministic: bool = True
    unrolled: bool = False

    def setup(self):
        """Declares tables, the encoder's stack and its norm."""
        c = self.config
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
        layer = ItemLayer if c.vector_dim else EncoderLayer
        self.encoder = layers_of(self, layer, c.encoder_layers, {"__call__": nn.broadcast})
        self.encoder_norm = RMSNorm(jnp.dtype(c.dtype))
        self.drop = length_dropout(c.dropout)
        if c.vector_dim:
            self.items = ItemReader(c, self.deterministic)

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


def layers_of(
    model: RequestReader, layer: type[nn.Module], count: int, axes: dict[str, Any]
) -> Any:
    """A model's stack of `count` layers; `axes` says for each method what every layer is given."""
    if model.unrolled:
        return UnrolledLayers(layer, model.config, count)
    stack = stacked(with_remat(layer, model.config), model.config, count, axes)
    return stack(model.config, model.deterministic)
