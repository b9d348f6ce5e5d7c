"""Requests encoded once, for both ways of decoding: candidates and beams."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from onesug_jax.arrays import CrossCache, InputTokens, SoftTokens
from onesug_jax.model.candidates import Opening
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq


@flax.struct.dataclass
class ReadRequests:
    """Encoded requests.

    Attributes:
      tokens: `[B, L]`, or `[B, L + H + C]` with items: the output of `Seq2Seq.given`.
      cross: cross-attention keys and values of all layers, `[N, B, H, L, head_dim]` each.
      opening: scores of the candidates; None if the model has no candidate tokens.
    """

    tokens: InputTokens
    cross: tuple[CrossCache, CrossCache]
    opening: Opening | None = None

    @property
    def mass(self) -> jax.Array | None:
        """Log of the sum of exponentials that candidate tokens add to the first softmax, `[B]`."""
        return None if self.opening is None else self.opening.mass


def read_requests(
    model: Seq2Seq,
    params,
    tokens: InputTokens,
    soft: SoftTokens | None = None,
    items: Items | None = None,
    tables: ItemTables | None = None,
) -> ReadRequests:
    """Encodes a batch of requests.

    Args:
      model: the encoder-decoder; params: its parameters (without the "params" level).
      tokens: `[B, L]` the encoder's ids, 0 = padding.
      soft: `[B, S, E]` vectors of the soft tokens, if there are any.
      items, tables: further inputs of a model with items.
    """
    variables = {"params": params}
    encoded = model.apply(variables, tokens, None, soft, items, tables, method="encode")
    cross: Any = model.apply(variables, encoded, method="cross_keys_values")
    given: Any = model.apply(variables, tokens, items, method="given")
    opening: Any = None
    if model.config.writes_candidates:
        opening = model.apply(variables, encoded, given, items, method="opening")
    return ReadRequests(given, cross, opening)
