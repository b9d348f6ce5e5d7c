"""Sizes of the encoder-decoder, and its number of parameters and FLOPs.

The architecture is T5 v1.1 (PAPER.md's "standard encoder-decoder"): RMSNorm before each block,
bucketed relative positions, gated GELU, no biases, and a separate output head unless tied. Tests
compare the two counts with the arrays and with XLA's own figures.
"""

from __future__ import annotations

import dataclasses

from onesug_jax.errors import UserError

REMAT_POLICIES = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One encoder-decoder.

    Attributes:
      vocab_size: rows of the embedding table (pieces, separators, semantic ids, padding).
      d_model: width of the residual stream.
      num_heads: attention heads; head_dim: width of one (their product may differ from d_model).
      d_ff: width of each of the two gated branches of the MLP.
      encoder_layers, decoder_layers: depth of each side.
      dropout: rate on block outputs and attention weights while training.
      dtype: compute type, "float32" or "bfloat16"; parameters, softmax and loss are float32.
      remat: what the backward pass recomputes: "none", "full" (every layer) or "dots" (all but
        matrix products).
      unroll: compile every layer instead of a loop over them (faster on CPU, slower to compile);
        parameters are stacked in both cases, so checkpoints do not change.
      tie_embeddings: use the embedding table as output head.
      relative_buckets, relative_max_distance: T5's bucketed relative positions.
      positions_per_layer: every layer has its own table of relative positions, as in umT5;
        otherwise the layers of a side share one, as in T5.
      soft_dim: width of the vectors that replace a token of the input, the enhanced prefix e_p*; 0:
        there are none. soft_id: the token that they replace.
      segments: add the row of an item's marker to all tokens of the item, like BERT's segment
        embeddings, and the row of a marker to another one right after it (a related query's
        conversion bucket). T5 does not.
      first_marker, last_marker: ids of the markers.
      vector_dim: width of the vectors of items (`items.py`) and of e_p*; 0: no items, only text.
      projected: width of the projections in the learned relations of items.
      count_columns: number of as-of counts of a candidate.
      enhance: share of the candidates' mean in e_p*, for a model with items.
      enhanced_prefix: pass e_p* to the encoder of items; False only for the ablation.
      relations: bias attention by the similarity of items; False only for the ablation.
      candidate_tokens: the request's candidates compete with the vocabulary as first tokens; each
        one writes a complete query (`candidates.py`).

    Examples:
      >>> from onesug_jax import ModelConfig
      >>> ModelConfig(vocab_size=32_128, d_model=512, num_heads=6, head_dim=64, d_ff=1024).dtype
      'float32'
    """

    vocab_size: int = 0
    d_model: int = 192
    num_heads: int = 6
    head_dim: int = 32
    d_ff: int = 512
    encoder_layers: int = 3
    decoder_layers: int = 2
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False
    tie_embeddings: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    positions_per_layer: bool = False
    soft_dim: int = 0
    soft_id: int = -1
    segments: bool = False
    first_marker: int = 0
    last_marker: int = -1
    vector_dim: int = 0
    projected: int = 32
    count_columns: int = 11
    enhance: float = 0.5
    enhanced_prefix: bool = True
    relations: bool = True
    candidate_tokens: bool = True

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"ModelConfig.dtype = {self.dtype!r}: expected one of {DTYPES}")
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"ModelConfig.remat = {self.remat!r}: expected one of {REMAT_POLICIES}")
        for name in (
            "d_model",
            "num_heads",
            "head_dim",
            "d_ff",
            "relative_buckets",
            "projected",
            "count_columns",
        ):
            if getattr(self, name) < 1:
                found = getattr(self, name)
                raise UserError(f"ModelConfig.{name} = {found}: expected a positive number")
        if self.vector_dim and self.positions_per_layer:
            raise UserError(
                f"ModelConfig.vector_dim = {self.vector_dim} (items): expected "
                "positions_per_layer = False, found True; items are not implemented for umT5"
            )

    @property
    def writes_candidates(self) -> bool:
        """Whether a request's candidates are output tokens; only with items."""
        return self.candidate_tokens and self.vector_dim > 0

    @property
    def attention_width(self) -> int:
        """Width of all heads side by side, `num_heads * head_dim`."""
        return self.num_heads * self.head_dim

    def parameters(self) -> int:
        """Number of trainable values."""
        attention = 4 * self.d_model * self.attention_width
        mlp = 3 * self.d_model * self.d_ff
        encoder_layer = attention + mlp + 2 * self.d_model
        decoder_layer = 2 * attention + mlp + 3 * self.d_model
        tables = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        layers = self.encoder_layers + self.decoder_layers if self.positions_per_layer else 2
        positions = layers * self.num_heads * self.relative_buckets
        return (
            self.encoder_layers * encoder_layer
            + self.decoder_layers * decoder_layer
            + tables
            + positions
            + 2 * self.d_model
            + (self.vector_dim or self.soft_dim) * self.d_model
            + self._item_parameters() * (self.vector_dim > 0)
        )

    def _item_parameters(self) -> int:
        """Parameters of `ItemReader`, of the relations in every layer, and of `CandidateHead`."""
        d, h, counts = self.d_model, self.num_heads, self.count_columns
        reader = (3 * counts + 10) * d + d * d + d + (6 + 2 + 24 + 7) * d
        reader += 3 * self.vector_dim * self.projected
        layer = 14 * h + 7 * h * d + d * d
        head = (2 * d * d + d + counts + 1) * self.writes_candidates
        return reader + self.encoder_layers * layer + head

    def flops_per_example(
        self, input_length: int, target_length: int, history: int = 0, candidates: int = 0
    ) -> int:
        """FLOPs of one forward pass over one example; a training step costs three times as much.

        Convention: matrix products only, a multiply-add is two FLOPs, padding counts, and causal
        masking saves nothing.
        """
        d, a, ff = self.d_model, self.attention_width, self.d_ff
        keys = (1 + history) * (self.vector_dim > 0)  # e_p* and the history
        context, target = input_length + keys, target_length
        length = context + candidates
        mlp = 2 * 3 * d * ff
        encoder_layer = length * (2 * 2 * d * a + mlp + 4 * context * a) + context * 2 * 2 * d * a
        decoder_layer = (
            target * (2 * 4 * d * a + mlp + 4 * target * a)  # self-attention and MLP
            + target * (2 * 2 * d * a + 4 * length * a)  # cross-attention: queries, output, scores
            + length * (2 * 2 * d * a)  # cross-attention: keys and values
        )
        head = target * 2 * d * self.vocab_size
        if self.vector_dim:
            h, relations = self.num_heads, 6
            items = keys + candidates
            encoder_layer += length * (2 * 7 * h * d + 2 * d * d) + keys * 2 * 7 * h
            encoder_layer += items * 2 * relations * keys * 2 * h
            head += 2 * items * keys * (self.vector_dim + 2 * self.projected)
            head += 2 * items * 3 * self.projected * self.vector_dim
            head += candidates * 2 * d * (3 * self.count_columns + 10 + d) + history * 2 * 6 * d
            head += candidates * 2 * self.vector_dim + 2 * self.vector_dim * d
        if self.writes_candidates:
            head += 2 * 2 * d * d + candidates * 2 * (d + self.count_columns)
        return self.encoder_layers * encoder_layer + self.decoder_layers * decoder_layer + head
