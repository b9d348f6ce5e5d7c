"""The pretrain stage: next-token loss on the queries people searched (PAPER.md section 3).

The result is the SFT model: the first M_t, and the reference of preference alignment. A model with
candidate tokens learns log p(q | x) of both ways of writing a query (`model/candidates.py`).
"""

from __future__ import annotations

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

WRITTEN_SHARE = 0.25  # of a batch's rows, decoded by pieces
WRITTEN_GROUP = 16  # consecutive rows among which these are chosen: no row changes its device


def step_flops(
    config: ModelConfig,
    input_length: int,
    target_length: int,
    history: int = 0,
    candidates: int = 0,
    written_share: float = WRITTEN_SHARE,
) -> float:
    """FLOPs of an update, forward and back, an example; conventions as
    `ModelConfig.flops_per_example`. With candidate tokens every row takes one step of the decoder,
    and `written_share` of them are decoded by pieces besides.
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

    A model with items reads those too (`Items.of`), and with candidate tokens `target_candidate
    [B]`, the place + 1 of the target among the candidates. `weight [B]`, where there is one,
    multiplies the loss of a row.

    Reported sums: `accuracy`, the share of tokens, or of rows where there are candidate tokens,
    that the model ranks first.

    Args:
      tables: of the items.
      writing: weight of the target's pieces given that it is written by pieces: so the decoder
        learns to write from rows of all kinds, which it does for the few whose query is new.
      written_share: of every `WRITTEN_GROUP` rows, how many are decoded by pieces; those whose
        target is no candidate come first, others by chance. Most of the time of a step goes into
        pieces.

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

    def init(key: jax.Array):
        return initial(config, key)

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
    """`-log p(q | x)`, summed over the rows of a batch: its sum, the rows' weights, and other sums.

    Once it is settled that a query is written, what its pieces say, `log p(pieces | x, written)`,
    counts `writing` times: it is ten times as large as the choice of a candidate, and few rows need
    it. A row that is not decoded has the choice alone.
    """
    place, targets = batch["target_candidate"], batch["decoder_target_tokens"]
    size = len(place)
    order = (place == 0) + jax.random.uniform(jax.random.fold_in(key, 1), (size,))
    order = order.reshape(-1, size if size % WRITTEN_GROUP else WRITTEN_GROUP)
    rows = jax.lax.top_k(order, min(math.ceil(written_share * order.shape[1]), order.shape[1]))[1]

    def of_rows(x: jax.Array) -> jax.Array:
        """The chosen rows of `x [B, ...]`."""
        x = x.reshape(*order.shape, *x.shape[1:])
        return jax.vmap(lambda x, rows: x[rows])(x, rows).reshape(-1, *x.shape[2:])

    def to_rows(x: jax.Array, others: float) -> jax.Array:
        """`x` of the chosen rows and a number for the others, `[B]`."""
        put = jax.vmap(lambda rows, x: jnp.full(order.shape[1], others).at[rows].set(x))
        return put(rows, x.reshape(rows.shape)).reshape(size)

    def both(model: Seq2Seq) -> tuple[Opening, Scores]:
        items = Items.of(batch)
        assert items is not None, "a model with candidate tokens reads items"
        tokens, inputs = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        text, written = model.look_up(tokens, inputs)
        encoded = model.encode(tokens, None, None, items, tables, text)
        given = model.given(tokens, items)
        opening = model.opening(encoded, given, items, written[:, :1])
        encoded, given, inputs, written = map(of_rows, (encoded, given, inputs, written))
        some = jax.tree.map(of_rows, items)
        return opening, model.decode(encoded, given, inputs, items=some, rows=written)

    found: Any = model.apply({"params": params}, method=both, rngs={"dropout": key})
    opening, scores = found
    there = of_rows(batch["decoder_loss_weights"]) > 0
    logs = jnp.where(there, scores.log_probabilities(of_rows(targets)), 0.0)
    pieces = jnp.sum(logs, axis=1)
    written = to_rows(pieces, NEG_INF)
    candidates = opening.log_probabilities
    total = either_way(candidates, written, place)
    # p(first piece) = p(written) * p(first piece | written)
    share = jnp.exp(jnp.minimum(scores.mass[:, 0] - scores.log_partition()[:, 0], -1e-6))
    given_written = to_rows(pieces - jnp.log1p(-share), 0.0)
    weights = batch.get("weight", jnp.ones(size)) * (targets[:, 0] > 0)
    own = jnp.take_along_axis(candidates, jnp.maximum(place - 1, 0)[:, None], axis=1)[:, 0]
    hits = (place > 0) & (own >= jnp.max(candidates, axis=1))
    chosen = jnp.where(place > 0, total, log_written(candidates))
    loss = -jnp.sum(weights * (chosen + writing * given_written))
    return loss, jnp.sum(weights), {"accuracy": jnp.sum(weights * hits)}


def log_written(candidates: jax.Array) -> jax.Array:
    """`log p(no candidate | x)`, `[B]`, from the candidates' log-probabilities `[B, C]`."""
    mass = jax.nn.logsumexp(candidates, axis=1)
    return jnp.log1p(-jnp.exp(jnp.minimum(mass, -1e-6)))
