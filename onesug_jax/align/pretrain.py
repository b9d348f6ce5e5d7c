"""The pretrain stage: next-token loss on the queries people searched (PAPER.md section 3).

The result is the SFT model: the first M_t, and the reference of preference alignment. A model with
candidate tokens learns log p(q | x) over both ways to write a query (`model/candidates.py`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.align.losses import sft
from onesug_jax.arrays import NEG_INF
from onesug_jax.model.candidates import Opening, either_way
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.scores import Scores
from onesug_jax.model.seq2seq import Seq2Seq, initial
from onesug_jax.train.train_state import Stage

WRITTEN_SHARE = 0.25  # share of a batch's rows that is decoded piece by piece
WRITTEN_GROUP = 16  # they are chosen within so many consecutive rows: none changes its device


def step_flops(
    config: ModelConfig,
    input_length: int,
    target_length: int,
    history: int = 0,
    candidates: int = 0,
    written_share: float = WRITTEN_SHARE,
) -> float:
    """FLOPs per example of an update, forward and backward; conventions of
    `ModelConfig.flops_per_example`. With candidate tokens every row takes one decoder step, and a
    share `written_share` of the rows is also decoded piece by piece.
    """
    request, opened, written = (
        config.flops_per_example(input_length, length, history, candidates)
        for length in (0, 1, target_length)
    )
    if not config.writes_candidates:
        return 3.0 * written
    return 3.0 * (opened + written_share * (written - request))


def pretrain_stage(
    config: ModelConfig,
    tables: ItemTables | None = None,
    writing: float = 0.05,
    written_share: float = WRITTEN_SHARE,
) -> Stage:
    """The stage that the training loop runs; batches are T5X's arrays, padded or packed.

    A model with items also reads the batch's items (`Items.of`). With candidate tokens it reads
    `target_candidate [B]`, the position + 1 of the target among the candidates. `weight [B]`, if
    present, multiplies the loss of a row.

    Reported: `accuracy`, the share of tokens that the model ranks first; with candidate tokens,
    the share of rows.

    Args:
      tables: the item tables.
      writing: weight of the log-probability of the target's pieces, given that the query is
        written. It lets the decoder learn from all rows, not only from the few with a new query.
      written_share: the share of every `WRITTEN_GROUP` rows that is decoded piece by piece, which
        takes most of the time of a step. Rows whose target is not a candidate come first, then
        rows at random.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from onesug_jax import ModelConfig, pretrain_stage
      >>> stage = pretrain_stage(ModelConfig(vocab_size=64, d_model=16, d_ff=32, encoder_layers=1))
      >>> params = jax.jit(stage.init_fn)(jax.random.key(0))
      >>> tokens = jnp.array([[5, 6, 1, 0]])
      >>> batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
      >>> batch |= {"decoder_target_tokens": tokens, "decoder_loss_weights": tokens > 0}
      >>> nats, weight, sums = jax.jit(stage.loss_fn)(params, batch, jax.random.key(1))
      >>> bool(nats / weight > 0), float(weight)
      (True, 3.0)
    """
    model = Seq2Seq(config, deterministic=config.dropout == 0)

    def loss(params, batch, key, tables=None):
        if config.writes_candidates:
            return either_way_loss(model, params, batch, key, tables, writing, written_share)
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

    init = functools.partial(initial, config)
    return Stage("pretrain", init, loss, tokens, frozen=tables, rows_add_up=True)


def either_way_loss(
    model: Seq2Seq,
    params: Any,
    batch: Any,
    key: jax.Array,
    tables: ItemTables,
    writing: float = 0.05,
    written_share: float = WRITTEN_SHARE,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """`-log p(q | x)` of a batch: the sum over its rows, the sum of their weights, other sums.

    The pieces' log-probability given that the query is written, `log p(pieces | x, written)`, is
    weighted by `writing`: it is ten times as large as that of the choice between candidates and
    writing, and few rows need it. A row that is not decoded has the term of the choice only.
    """
    place, targets = batch["target_candidate"], batch["decoder_target_tokens"]
    size = len(place)
    priority = (place == 0) + jax.random.uniform(jax.random.fold_in(key, 1), (size,))
    priority = priority.reshape(-1, size if size % WRITTEN_GROUP else WRITTEN_GROUP)
    count = min(math.ceil(written_share * priority.shape[1]), priority.shape[1])
    rows = jax.lax.top_k(priority, count)[1]

    def gather(x: jax.Array) -> jax.Array:
        """The rows of `x [B, ...]` that are decoded."""
        x = x.reshape(*priority.shape, *x.shape[1:])
        return jax.vmap(lambda x, rows: x[rows])(x, rows).reshape(-1, *x.shape[2:])

    def scatter(x: jax.Array, fill: float) -> jax.Array:
        """`x` at the rows that are decoded, `fill` at the others, `[B]`."""
        put = jax.vmap(lambda rows, x: jnp.full(priority.shape[1], fill).at[rows].set(x))
        return put(rows, x.reshape(rows.shape)).reshape(size)

    def both(model: Seq2Seq) -> tuple[Opening, Scores]:
        items = Items.of(batch)
        assert items is not None, "a model with candidate tokens reads items"
        tokens, inputs = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        text, written = model.look_up(tokens, inputs)
        encoded = model.encode(tokens, None, None, items, tables, text)
        given = model.given(tokens, items)
        opening = model.opening(encoded, given, items, written[:, :1])
        encoded, given, inputs, written = map(gather, (encoded, given, inputs, written))
        items = jax.tree.map(gather, items)
        return opening, model.decode(encoded, given, inputs, items=items, rows=written)

    outputs: Any = model.apply({"params": params}, method=both, rngs={"dropout": key})
    opening, scores = outputs
    mask = gather(batch["decoder_loss_weights"]) > 0
    logs = jnp.where(mask, scores.log_probabilities(gather(targets)), 0.0)
    pieces = jnp.sum(logs, axis=1)
    written = scatter(pieces, NEG_INF)
    candidates = opening.log_probabilities
    total = either_way(candidates, written, place)
    # p(first piece) = p(written) * p(first piece | written)
    share = jnp.exp(jnp.minimum(scores.mass[:, 0] - scores.log_partition()[:, 0], -1e-6))
    given_written = scatter(pieces - jnp.log1p(-share), 0.0)
    weights = batch.get("weight", jnp.ones(size)) * (targets[:, 0] > 0)
    own = jnp.take_along_axis(candidates, jnp.maximum(place - 1, 0)[:, None], axis=1)[:, 0]
    hits = (place > 0) & (own >= jnp.max(candidates, axis=1))
    choice = jnp.where(place > 0, total, log_written(candidates))
    loss = -jnp.sum(weights * (choice + writing * given_written))
    return loss, jnp.sum(weights), {"accuracy": jnp.sum(weights * hits)}


def log_written(candidates: jax.Array) -> jax.Array:
    """`log p(no candidate | x)`, `[B]`, from the candidates' log-probabilities `[B, C]`."""
    mass = jax.nn.logsumexp(candidates, axis=1)
    return jnp.log1p(-jnp.exp(jnp.minimum(mass, -1e-6)))
