"""The pretrain stage: next-token loss on the queries people searched (PAPER.md section 3).

The result is the SFT model: the first M_t, and the reference of preference alignment.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.align.losses import sft
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train.step import Stage


def pretrain_stage(config: ModelConfig) -> Stage:
    """The stage that the training loop runs; batches are T5X's arrays, padded or packed.

    Reported sums, per target token: `accuracy`, the share of tokens the model ranks first.
    """
    model = Seq2Seq(config, deterministic=config.dropout == 0)

    def init(key: jax.Array):
        tokens = jnp.ones((1, 8), jnp.int32)
        return Seq2Seq(config).init(key, tokens, tokens)["params"]

    def loss(params, batch, key):
        scores: Any = model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch.get("encoder_segment_ids"),
            batch.get("decoder_segment_ids"),
            batch.get("encoder_soft"),
            rngs={"dropout": key},
            method="score",
        )
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        total, weight = sft(scores.log_probabilities(targets), weights)
        hits = scores.ranked_first(targets) * weights
        return total, weight, {"accuracy": jnp.sum(hits)}

    def tokens(batch) -> int:
        return int(
            np.count_nonzero(batch["encoder_input_tokens"])
            + np.count_nonzero(batch["decoder_loss_weights"])
        )

    return Stage("pretrain", init, loss, tokens)
