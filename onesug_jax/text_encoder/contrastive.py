"""Contrastive alignment: the loss and the stage (PAPER.md section 2, point 2).

The two texts of a mined pair (prefix and query, or two queries) should be near each other and far
from the other texts of the batch: InfoNCE over cosines divided by a temperature, in both
directions. The paper has in-batch negatives, cosine and temperature; masking false negatives is
ours. `pairs.py` reads the pairs.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.arrays import NEG_INF
from onesug_jax.errors import UserError
from onesug_jax.text_encoder.bert import Bert, EncoderConfig
from onesug_jax.train.train_state import Stage


def false_negatives(anchor_ids: jax.Array, other_ids: jax.Array) -> jax.Array:
    """The `(i, j)`, i != j, that are not negatives: `[B], [B] -> [B, B]` bool, symmetric.

    Pair j's other text is not a negative of pair i's anchor if it equals pair i's other text or
    the anchor itself, or if the two anchors are the same text. The same holds with i and j swapped.
    """
    same = (anchor_ids[:, None] == anchor_ids) | (other_ids[:, None] == other_ids)
    crossed = anchor_ids[:, None] == other_ids
    return (same | crossed | crossed.T) & ~jnp.eye(len(anchor_ids), dtype=bool)


def info_nce(
    anchors: jax.Array,
    others: jax.Array,
    anchor_ids: jax.Array,
    other_ids: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE of B pairs against each other.

    Loss of pair i, with s_ij = cos(a_i, o_j) / temperature:
    -(log softmax_j(s_i.)[i] + log softmax_j(s_.i)[i]) / 2, over the j that are not
    `false_negatives`.

    Args:
      anchors, others: `[B, D]` unit vectors.
      anchor_ids, other_ids: `[B]` ints, equal where the texts are equal.

    Returns:
      losses `[B]`; hits `[B]` float: 1 if the pair's own other text is nearest to the anchor.
    """
    scores = (anchors @ others.T).astype(jnp.float32) / temperature
    scores = jnp.where(false_negatives(anchor_ids, other_ids), NEG_INF, scores)
    # A device has the rows of its anchors and the columns of all other texts.
    scores = nn.with_logical_constraint(scores, ("batch", None))
    own = jnp.diagonal(scores)
    forward = jax.nn.logsumexp(scores, axis=1) - own
    backward = jax.nn.logsumexp(scores, axis=0) - own
    hits = (own >= jnp.max(scores, axis=1)).astype(jnp.float32)
    return (forward + backward) / 2, hits


def contrastive_stage(config: EncoderConfig, temperature: float = 0.05) -> Stage:
    """The stage that aligns an encoder.

    A batch holds B pairs: `tokens [B, 2, L]`, `lengths [B, 2]` and `texts [B, 2]` (text numbers),
    first the anchor, then the other text. Negatives come from the whole batch, over all devices of
    the mesh. With gradient accumulation they come from the microbatch only, so microbatches are not
    equivalent to one larger batch.

    Reported means over pairs: `accuracy` (the pair's own other text is the nearest), `cosine`.

    Raises:
      UserError: the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: expected a positive number, such as 0.05.")
    model = Bert(config, deterministic=config.dropout == 0)

    def init(key: jax.Array):
        return Bert(config).init(key, jnp.ones((1, 8), jnp.int32), jnp.ones(1, jnp.int32))["params"]

    def loss(params, batch, key):
        pairs, _, length = batch["tokens"].shape
        vectors: Any = model.apply(
            {"params": params},
            batch["tokens"].reshape(2 * pairs, length),
            batch["lengths"].reshape(2 * pairs),
            rngs={"dropout": key},
        )
        vectors = vectors.reshape(pairs, 2, -1)
        anchors, others = vectors[:, 0], vectors[:, 1]
        texts = batch["texts"]
        losses, hits = info_nce(anchors, others, texts[:, 0], texts[:, 1], temperature)
        sums = {"accuracy": jnp.sum(hits), "cosine": jnp.sum(anchors * others)}
        return jnp.sum(losses), jnp.float32(pairs), sums

    return Stage("contrastive", init, loss, lambda batch: int(np.sum(batch["lengths"])))
