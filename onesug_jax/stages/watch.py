"""Dev metrics of a model with candidate tokens during training, on a fixed sample of rows.

The rows, their candidates and the compiled program are made once; an evaluation is one pass of the
encoder and one step of the decoder. Queries written by beams are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.tasks.item_loader import ItemLoader

_BLOCK = 256
_K = 16
_SAMPLES, _LISTED = 4, 6  # rows whose lists are shown, and queries per list
_ERRORS = 2.0  # standard errors between a metric and its lower bound
LOWER = "lower"


def improves(best: float | None, start: float, metric: str, least: float) -> bool:
    """Whether the best evaluation of a training is at least `least` points above its start, and
    above it at all; prints a line if not. `metric`: the name of what is compared.
    """
    gain = (best or 0.0) - start
    if gain > 0 and gain >= least:
        return True
    print(
        f"rwr: no evaluation beat the {metric} of {start:.2f} that training started from by "
        f"{least:g} points (best: {best or 0.0:.2f}), so the pretrain stage's model stays the one "
        "in use (rwr.least_gain)",
        flush=True,
    )
    return False


def watch(
    loader: ItemLoader,
    config: Any,
    tables: Any,
    mesh: Any,
    rows: int,
    dev: str,
    queries: Sequence[str],
    compared: str | None = None,
) -> Callable[[Any, int], dict[str, Any]]:
    """`(params, step)` -> HR@16 and MRR@16 of the first `rows` dev rows, MRR@16 of those with an
    order, and `value`, the mean of both MRRs; in per cent. `loss` is the cross-entropy over the
    candidates and "none of them", in nats per row; `lists` has the best candidates of a few rows.

    Args:
      dev: the file of the rows, in the loader's order.
      queries: the indexed queries; later ones are listed as "(new)".
      compared: a metric that is also reported as its lower bound, LOWER: two standard errors of its
        difference to the first call below it, over the same rows.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import pyarrow.parquet as pq

    from onesug_jax.align.candidate_lists import candidate_scores
    from onesug_jax.align.pretrain import log_written
    from onesug_jax.logs.schema import Level
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.train import mesh as meshes

    model = Seq2Seq(config)
    chosen = np.arange(min(rows, len(loader.examples)))
    blocks, size = [], meshes.divisible_batch(mesh, _BLOCK)
    process_rows = meshes.process_batch_shard(mesh, size)
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        filled = np.concatenate([block, np.full(size - len(block), block[0])])
        blocks.append((len(block), loader.arrays(filled[process_rows], loader.sizes[-1])))
    orders = loader.examples.column("level")[chosen] == Level.ORDER
    weights = _weights(orders)
    first: list[np.ndarray] = []  # the reciprocal ranks of the first call

    texts = pq.read_table(dev, columns=["prefix", "query"])[: min(_SAMPLES, len(chosen))]
    headings = [f"{row['prefix']} -> {row['query']}" for row in texts.to_pylist()]

    @jax.jit
    def judge(params, batch, tables):
        """Per row: the target's rank (0: no candidate), its nats, numbers of the best queries."""
        with meshes.rules_context(mesh):
            scores = candidate_scores(model, params, batch, tables)
        place = batch["target_candidate"]
        own = jnp.take_along_axis(scores, jnp.maximum(place - 1, 0)[:, None], axis=1)
        rank = jnp.where(place > 0, 1 + (scores > own).sum(axis=1), 0)
        nats = -jnp.where(place > 0, own[:, 0], log_written(scores))
        best = jax.lax.top_k(scores, min(_LISTED, scores.shape[1]))[1]
        return rank, nats, jnp.take_along_axis(batch["candidates"], best, axis=1)

    def named(number: int) -> str:
        return queries[number - 1] if number <= len(queries) else "(new)"

    def evaluate(params: Any, step: int) -> dict[str, Any]:
        parts = []
        for n, batch in blocks:
            judged = meshes.on_host(judge(params, meshes.global_batch(mesh, batch), tables))
            parts.append([np.asarray(values)[:n] for values in judged])
        ranks, nats, best = map(np.concatenate, zip(*parts, strict=True))
        hits = (ranks > 0) & (ranks <= _K)
        gains = np.where(hits, 100.0 / np.maximum(ranks, 1), 0.0)
        values = {name: float(own @ gains) for name, own in weights.items()}
        if compared is not None:
            if not first:
                first.append(gains)
            values[LOWER] = values[compared] - _ERRORS * _error(gains - first[0], weights[compared])
        return {
            "hr@16": 100.0 * float(hits.mean()),
            **values,
            "loss": float(nats.mean()),
            "lists": {
                heading: [named(int(number)) for number in numbers if number]
                for heading, numbers in zip(headings, best, strict=False)
            },
        }

    return evaluate


def _weights(orders: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> weights `[N]`, of sum 1, of the N rows' reciprocal ranks; `orders [N]`: whether a
    row ended in an order. Without orders all metrics are the mean.
    """
    import numpy as np

    mrr = np.full(len(orders), 1 / max(len(orders), 1))
    order = orders / orders.sum() if orders.any() else mrr
    return {"mrr@16": mrr, "order_mrr@16": order, "value": (mrr + order) / 2}


def _error(differences: np.ndarray, weights: np.ndarray) -> float:
    """The standard error of the weighted mean of N differences."""
    centred = differences - weights @ differences
    return float(((weights * centred) ** 2).sum() ** 0.5)
