"""The encoder: tokens and items of a request to the states that the decoder attends to.

It contains the token table, which the decoder shares. `seq2seq.py` adds the decoder.
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
      unrolled: whether each layer has separate parameters (`for_decoding`); not for training.
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

        The stored table is that much smaller, because AdamW's steps do not depend on the scale of a
        parameter: a table at T5's scale would hardly change in a short training.
        """
        # The constraint also applies to the gradient: every device sums its own rows, then they are
        # reduced. Without it, every device would gather the rows of all others.
        table = nn.with_logical_constraint(self.embedding, ("vocab", "embed"))
        scale = self.config.d_model**0.5
        rows = (jnp.take(table, tokens, axis=0) * scale).astype(self.config.dtype)
        return nn.with_logical_constraint(rows, ACTIVATION_AXES)

    def look_up(
        self, tokens: InputTokens, decoder_inputs: TargetTokens
    ) -> tuple[TokenRows, TokenRows]:
        """Rows for `encode`, `[B, L, D]`, with segments, and for `decode`, `[B, T, D]`.

        One gather for both has one scatter-add as its gradient.
        """
        opener = tokens[:, :0]
        if self.config.segments:
            opener = openers(tokens, self.config.first_marker, self.config.last_marker)
        ids = [tokens, opener, decoder_inputs]
        ends = [tokens.shape[1], tokens.shape[1] + opener.shape[1]]
        rows, segments, targets = jnp.split(self._embed(jnp.concatenate(ids, 1)), ends, axis=1)
        rows = self.drop(rows, deterministic=self.deterministic)
        if self.config.segments:
            segments = jnp.where((opener > 0)[..., None], segments, 0)
            rows += self.drop(segments, deterministic=self.deterministic)
        return rows, targets

    def encode(
        self,
        tokens: InputTokens,
        segments: SegmentIds | None = None,
        soft: SoftTokens | None = None,
        items: Items | None = None,
        tables: ItemTables | None = None,
        rows: TokenRows | None = None,
    ) -> Encoded:
        """States of the request: `[B, L] -> [B, L, D]`; padding (0) is masked.

        A model with items computes e_p* itself and returns `[B, L + 1 + H + C, D]`: text, e_p*,
        history and candidates. Attention over these states uses the mask from `given`, not the
        tokens. The soft projection has the same scale as the token table.

        Args:
          soft: enhanced prefixes e_p* (PAPER.md section 2.3), one per soft token.
          rows: the first output of `look_up`, if it was already computed.
        """
        c = self.config
        x = self.look_up(tokens, tokens[:, :0])[0] if rows is None else rows
        if c.vector_dim:
            assert items is not None and tables is not None, "a model with items needs items"
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
        """`encode` of text and items; all positions attend to text, e_p* and history."""
        positions = jnp.arange(tokens.shape[1])
        enhanced = enhanced_prefix(items, tables, self.config.enhance)
        if not self.config.enhanced_prefix:
            enhanced = jnp.zeros_like(enhanced)
        inputs = self.items(items, tables, enhanced)
        x = x.at[:, :1].add(inputs.clock)
        soft = enhanced @ self.soft_projection * self.config.d_model**0.5
        rows = jnp.concatenate([soft[:, None].astype(x.dtype), inputs.rows], axis=1)
        x = jnp.concatenate([x, self.drop(rows, deterministic=self.deterministic)], axis=1)
        mask = self.given(tokens, items)[:, : x.shape[1] - items.candidates.shape[1]] > 0
        distance = self.encoder_positions(positions, positions)
        text = tokens.shape[1]
        padding = [(0, 0), (0, 0), *((0, size - text) for size in (x.shape[1], mask.shape[1]))]
        bias = as_bias(mask[:, None]) + jnp.pad(distance, padding)
        related = inputs.relations if self.config.relations else jnp.zeros_like(inputs.relations)
        x, _ = self.encoder(x, bias, related, inputs.key_features)
        return self.drop(self.encoder_norm(x), deterministic=self.deterministic)

    def given(self, tokens: InputTokens, items: Items | None = None) -> InputTokens:
        """The mask of the states of `encode`, `[B, S]`: nonzero where attention is allowed."""
        if not self.config.vector_dim:
            return tokens
        assert items is not None, "a model with items needs items"
        prefix = jnp.full_like(tokens[:, :1], self.config.enhanced_prefix)
        return jnp.concatenate([tokens, prefix, items.rows], axis=1)


def layers_of(
    model: RequestReader, layer: type[nn.Module], count: int, axes: dict[str, Any]
) -> Any:
    """A model's stack of `count` layers; `axes`: see `methods` of `stacked`."""
    if model.unrolled:
        return UnrolledLayers(layer, model.config, count)
    stack = stacked(with_remat(layer, model.config), model.config, count, axes)
    return stack(model.config, model.deterministic)
