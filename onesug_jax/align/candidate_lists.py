"""Preference lists of all candidates of a request, in one pass.

Where candidates are output tokens (`model/candidates.py`), one step of the decoder gives log pi of
every one of them, so the target is compared with all others instead of with the four that PAPER.md
section 4 samples. The losses get lists as usual: the positive first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from onesug_jax.arrays import ListMask, ListScores
from onesug_jax.model.candidates import Opening
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq

Batch = Mapping[str, Any]


def candidate_scores(
    model: Seq2Seq,
    params: Any,
    batch: Batch,
    tables: ItemTables,
    rngs: Mapping[str, jax.Array] | None = None,
) -> ListScores:
    """`log pi` of the candidates' tokens, `[B, C]`: of `encoder_input_tokens` and the items."""
    tokens, items = batch["encoder_input_tokens"], Items.of(batch)

    def opening(model: Seq2Seq) -> Opening:
        assert items is not None
        text, start = model.look_up(tokens, jnp.zeros((len(tokens), 1), jnp.int32))
        encoded = model.encode(tokens, None, None, items, tables, text)
        return model.opening(encoded, model.given(tokens, items), items, start)

    found: Any = model.apply({"params": params}, method=opening, rngs=dict(rngs or {}))
    return found.log_probabilities


def positive_first(values: jax.Array, place: jax.Array) -> jax.Array:
    """`[B, C]` of candidates -> `[B, 1 + C]`, the target first; `place [B]` is its place + 1,
    0 where it is not among them.
    """
    own = jnp.take_along_axis(values, jnp.maximum(place - 1, 0)[:, None], axis=1)
    return jnp.concatenate([own, values], axis=1)


def list_mask(candidates: jax.Array, place: jax.Array) -> ListMask:
    """What of `positive_first` is a positive or a negative, `[B, 1 + C]`; rows whose target is no
    candidate have no positive.
    """
    others = (candidates > 0) & (jnp.arange(candidates.shape[1]) != place[:, None] - 1)
    return jnp.concatenate([place[:, None] > 0, others], axis=1)
