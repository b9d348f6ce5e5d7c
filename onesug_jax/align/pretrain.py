"""The pretrain stage: next-token loss on the queries people searched (PAPER.md section 3).

The result is the SFT model: the first M_t, and the reference of preference alignment. A model with
candidate tokens learns log p(q | x) of both ways of writing a query (`model/candidates.py`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.align.losses import sft
from onesug_jax.model.candidates import either_way
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.copying import Scores
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq, initial
from onesug_jax.train.step import Stage


def pretrain_stage(
    config: ModelConfig, tables: ItemTables | None = None, writing: float = 0.05
) -> Stage:
    """The stage that the training loop runs; batches are T5X's arrays, padded or packed.

    A model with items reads those too (`Items.of`), and with candidate tokens `target_candidate
    [B]`, the place + 1 of the target among the candidates. `weight [B]`, where there is one,
    multiplies the loss of a row.

    Reported sums: `accuracy`, the share of tokens, or of rows where there are candidate tokens,
    that the model ranks first; and then also `written`, the log-probability of the pieces alone.

    Args:
      tables: of the items.
      writing: weight of the target's pieces given that it is written by pieces: so the decoder
        learns from all rows to write, which it does for the few whose query nobody searched before.
    """
    model = Seq2Seq(config, deterministic=config.dropout == 0)

    def init(key: jax.Array):
        return initial(config, key)

    def loss(params, batch, key, tables=None):
        scores: Any = model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch.get("encoder_segment_ids"),
            batch.get("decoder_segment_ids"),
            batch.get("encoder_soft"),
            Items.of(batch),
            tables,
            rngs={"dropout": key},
            method="score",
        )
        if config.candidate_tokens:
            return either_way_loss(scores, batch, writing)
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        if "weight" in batch:
            weights = weights * batch["weight"][:, None]
        total, weight = sft(scores.log_probabilities(targets), weights)
        hits = scores.ranked_first(targets) * weights
        return total, weight, {"accuracy": jnp.sum(hits)}

    def tokens(batch) -> int:
        return int(
            np.count_nonzero(batch["encoder_input_tokens"])
            + np.count_nonzero(batch["decoder_loss_weights"])
        )

    return Stage("pretrain", init, loss, tokens, frozen=tables)


def either_way_loss(
    scores: Scores, batch: Any, writing: float
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """`-log p(q | x)`, summed over the rows of a batch: its sum, the rows' weights, and other sums.

    What the pieces say once it is settled that a query is written, `log p(pieces | x, written)`,
    counts `writing` times, in every row: it is ten times as large as the choice of a candidate, and
    few rows need it.
    """
    targets, place = batch["decoder_target_tokens"], batch["target_candidate"]
    tokens = jnp.where(batch["decoder_loss_weights"] > 0, scores.log_probabilities(targets), 0.0)
    written = jnp.sum(tokens, axis=1)
    assert scores.candidates is not None and scores.beside is not None
    total = scores.normalisers()[:, 0]
    candidates = scores.candidates - total[:, None]
    logs = either_way(candidates, written, place)
    # p(first piece) = p(written) * p(first piece | written)
    log_written = jnp.log1p(-jnp.exp(jnp.minimum(scores.beside[:, 0] - total, -1e-6)))
    given_written = written - log_written
    weights = batch.get("weight", jnp.ones_like(logs)) * (targets[:, 0] > 0)
    own = jnp.take_along_axis(candidates, jnp.maximum(place - 1, 0)[:, None], axis=1)[:, 0]
    hits = (place > 0) & (own >= jnp.max(candidates, axis=1))
    sums = {"accuracy": hits, "written": written}
    chosen = jnp.where(place > 0, logs, log_written)
    loss = -jnp.sum(weights * (chosen + writing * given_written))
    return loss, jnp.sum(weights), {name: jnp.sum(weights * x) for name, x in sums.items()}
