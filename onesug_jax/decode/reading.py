"""Requests read by the encoder once, for all that is decoded of them: candidates and beams."""

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
    """Requests as the encoder has read them: what every way of decoding shares.

    Attributes:
      tokens: `[B, L]`; of a model with items `[B, L + H + C]`, what `Seq2Seq.given` gives.
      cross: cross-attention keys and values of all layers, `[N, B, H, L, head_dim]` each.
      opening: of the candidates; None where the model has no candidate tokens.
    """

    tokens: InputTokens
    cross: tuple[CrossCache, CrossCache]
    opening: Opening | None = None

    @property
    def mass(self) -> jax.Array | None:
        """What candidate tokens add to the first softmax, `[B]`."""
        return None if self.opening is None else self.opening.mass


def read_requests(
    model: Seq2Seq,
    params,
    tokens: InputTokens,
    soft: SoftTokens | None = None,
    items: Items | None = None,
    tables: ItemTables | None = None,
) -> ReadRequests:
    """Encodes a batch of requests, once for all that is decoded of them.

    Args:
      model: the encoder-decoder; params: its parameters (without the "params" level).
      tokens: `[B, L]` the encoder's ids, 0 = padding.
      soft: `[B, S, E]` vectors of the soft tokens, where the requests have such.
      items, tables: what a model with items reads beside the tokens.
    """
    variables = {"params": params}
    encoded = model.apply(variables, tokens, None, soft, items, tables, method="encode")
    cross: Any = model.apply(variables, encoded, method="cross_keys_values")
    given: Any = model.apply(variables, tokens, items, method="given")
    opening: Any = None
    if model.config.writes_candidates:
        opening = model.apply(variables, encoded, given, items, method="opening")
    return ReadRequests(given, cross, opening)
