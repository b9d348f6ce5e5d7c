"""Preference lists that hold all candidates of a request, scored in one pass.

Where candidates are output tokens (`model/candidates.py`), one decoder step gives log pi of every
candidate. The target is therefore compared with all others, not only with the four that PAPER.md
section 4 samples. As in every preference list, the positive comes first.
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
    """`log pi` of the candidates' tokens, `[B, C]`, from `encoder_input_tokens` and the items."""
    tokens, items = batch["encoder_input_tokens"], Items.of(batch)

    def opening(model: Seq2Seq) -> Opening:
        assert items is not None
        text, start = model.look_up(tokens, jnp.zeros((len(tokens), 1), jnp.int32))
        encoded = model.encode(tokens, None, None, items, tables, text)
        return model.opening(encoded, model.given(tokens, items), items, start)

    output: Any = model.apply({"params": params}, method=opening, rngs=dict(rngs or {}))
    return output.log_probabilities


def positive_first(values: jax.Array, place: jax.Array) -> jax.Array:
    """Puts the target's value in front of all candidates' values: `[B, C]` -> `[B, 1 + C]`.

    `place [B]` is the target's position + 1, 0 where it is not a candidate.
    """
    target = jnp.take_along_axis(values, jnp.maximum(place - 1, 0)[:, None], axis=1)
    return jnp.concatenate([target, values], axis=1)


def list_mask(candidates: jax.Array, place: jax.Array) -> ListMask:
    """Whether each entry of `positive_first` is a positive or a negative, `[B, 1 + C]`; a row whose
    target is not a candidate has no positive.
    """
    others = (candidates > 0) & (jnp.arange(candidates.shape[1]) != place[:, None] - 1)
    return jnp.concatenate([place[:, None] > 0, others], axis=1)
