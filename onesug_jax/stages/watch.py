"""How a model with candidate tokens ranks a fixed sample of dev rows, while it is trained.

The rows, their candidates and the compiled program are made once; an evaluation is one pass of the
encoder and one step of the decoder. Written queries do not count here: `evaluate` opens beams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onesug_jax.tasks.item_loader import ItemLoader

_BLOCK = 256
_K = 16


def beats(best: float | None, start: float, metric: str) -> bool:
    """Whether an evaluation of training was better than its start; prints a line if none was."""
    if (best or 0.0) > start:
        return True
    print(
        f"rwr: no evaluation beat the {metric} of {start:.2f} that training started from (best: "
        f"{best or 0.0:.2f}), so the pretrain stage's model stays the one in use "
        "(rwr.only_if_better)",
        flush=True,
    )
    return False


def watch(
    loader: ItemLoader, config: Any, tables: Any, mesh: Any, rows: int
) -> Callable[[Any, int], dict[str, float]]:
    """`(params, step)` -> HR@16 and MRR@16 of the first `rows` dev rows, MRR@16 of those that ended
    in an order, and `value`, the mean of both MRRs; in per cent.
    """
    import jax
    import numpy as np

    from onesug_jax.align.candidate_lists import candidate_scores
    from onesug_jax.logs.schema import Level
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.train import mesh as meshes

    model = Seq2Seq(config)
    chosen = np.arange(min(rows, len(loader.examples)))
    blocks, size = [], meshes.divisible_batch(mesh, _BLOCK)
    mine = meshes.process_batch_shard(mesh, size)
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        filled = np.concatenate([block, np.full(size - len(block), block[0])])
        blocks.append((len(block), loader.arrays(filled[mine], loader.sizes[-1])))
    orders = loader.examples.column("level")[chosen] == Level.ORDER

    @jax.jit
    def ranks(params, batch, tables):
        with meshes.rules_context(mesh):
            scores = candidate_scores(model, params, batch, tables)
        place = batch["target_candidate"]
        own = jax.numpy.take_along_axis(scores, jax.numpy.maximum(place - 1, 0)[:, None], axis=1)
        return jax.numpy.where(place > 0, 1 + (scores > own).sum(axis=1), 0)

    def evaluate(params: Any, step: int) -> dict[str, float]:
        found = np.concatenate(
            [
                np.asarray(meshes.on_host(ranks(params, meshes.global_batch(mesh, batch), tables)))[
                    :n
                ]
                for n, batch in blocks
            ]
        )
        hits = (found > 0) & (found <= _K)
        gains = np.where(hits, 100.0 / np.maximum(found, 1), 0.0)
        mrr = float(gains.mean())
        order = float(gains[orders].mean()) if orders.any() else mrr
        return {
            "hr@16": 100.0 * float(hits.mean()),
            "mrr@16": mrr,
            "order_mrr@16": order,
            "value": (mrr + order) / 2,
        }

    return evaluate
