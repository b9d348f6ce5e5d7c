"""Preference alignment of a model with candidate tokens: the list of a row is all its candidates.

One pass of the encoder and one step of the decoder score every candidate, so the target is compared
with all others instead of with a sample (PAPER.md section 4 draws four). The examples contain the
levels; the rewards are a table by level and query.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages import watch
from onesug_jax.stages.asof_examples import BLOCKS, LEAST_ROWS
from onesug_jax.stages.parts import SPARE, Parts, on_device
from onesug_jax.stages.trained_model import TrainedModel

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.model.items import ItemTables
    from onesug_jax.tasks.item_examples import ItemExamples

REWARDS_FILE = "rewards.npy"


def rewards(context: Context) -> None:
    """Writes the reward of each query at each behaviour level, `[6, 1 + N + spare]`, into
    WORK_DIR/rewards. Workers count the levels if there are many rows.
    """
    import numpy as np

    from onesug_jax.align.rewards import reward_table
    from onesug_jax.logs.schema import Level
    from onesug_jax.logs.workers import results
    from onesug_jax.tasks.item_examples import ItemExamples

    folder, engine = context.work.examples, context.configured("LogEngineConfig")()
    examples = ItemExamples(folder, "train", fetch=fetch)
    size = 1 + len(Parts(context.work).completions) + SPARE
    starts = range(0, len(examples), max(LEAST_ROWS, -(-len(examples) // BLOCKS)))
    ends = [*starts[1:], len(examples)]
    blocks = [Rows(folder, first, stop, size) for first, stop in zip(starts, ends, strict=True)]
    counts = np.zeros((len(Level), size), np.int64)
    scratch = engine.scratch or context.work.rewards
    many = len(blocks) > 1
    for part in (
        results(engine, scratch, count_levels, blocks) if many else map(count_levels, blocks)
    ):
        counts += part
    table = reward_table(counts, context.configured("RewardConfig")())
    np.save(os.path.join(context.work.rewards, REWARDS_FILE), table)
    report = {level.name: int(counts[level].sum()) for level in Level if counts[level].sum()}
    write_json(os.path.join(context.work.rewards, "report.json"), report)
    summary = ", ".join(f"{count:,} {name}" for name, count in report.items())
    print(f"{len(examples):,} rows; candidates: {summary}", flush=True)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples from `first` up to `stop`, exclusive; queries have numbers below `size`."""

    folder: str
    first: int
    stop: int
    size: int


def count_levels(rows: Rows) -> np.ndarray:
    """How often each query was a candidate at each level, `[6, size]`; runs in a worker."""
    import numpy as np

    from onesug_jax.logs.schema import Level
    from onesug_jax.tasks.item_examples import ItemExamples

    counts = np.zeros((len(Level), rows.size), np.int32)
    examples = ItemExamples(rows.folder, "train", fetch=fetch)
    for block in examples.blocks(rows.first, rows.stop, names=("candidates", "candidate_levels")):
        numbers, levels = block["candidates"], block["candidate_levels"]
        mask = numbers > 0
        np.add.at(counts, (levels[mask], numbers[mask]), 1)
    return counts


def lists(
    model: TrainedModel, mesh: Any, batch_size: int
) -> tuple[Callable[[int], Mapping[str, Any]], str, ItemTables]:
    """The training data: step -> this process's shard of a batch; its summary; and the tables of
    the model's items.

    Raises:
      UserError: no row has a second candidate.
    """
    import numpy as np

    from onesug_jax.tasks.item_loader import ItemLoader
    from onesug_jax.train import mesh as meshes

    context, work, vocabulary = model.context, model.work, model.stored["vocabulary"]
    table = np.load(os.path.join(work.rewards, REWARDS_FILE))
    examples = ItemLoader(work.examples, vocabulary=vocabulary, fetch=fetch).examples
    several = (examples.column("target_candidate") > 0) & (examples.column("room") > 1)
    days = context.configured("ListConfig")().days
    rows = _recent(work.log, examples, np.flatnonzero(several), days)
    if not len(rows):
        raise UserError(
            f"{examples.folder}: no row has a second candidate, so there is nothing to prefer the "
            "searched query to; the pretrain stage's model is all that can be trained on this log."
        )
    loader = context.configured("rwr/ItemLoader")(
        work.examples,
        batch_size=batch_size,
        seed=context.seed,
        process_rows=meshes.process_batch_shard(mesh, batch_size),
        vocabulary=vocabulary,
        rows=rows,
        fetch=fetch,
    )

    def batch_at(step: int) -> dict[str, Any]:
        batch = loader.batch_at(step)
        return {**batch, "rewards": table[batch["levels"], batch["candidates"]]}

    return batch_at, loader.describe(), meshes.replicate(mesh, on_device(model.tables()))


def watched(
    model: TrainedModel, mesh: Any, tables: ItemTables, rows: int, compared: str
) -> Callable[[Any, int], dict[str, Any]]:
    """`watch.watch` on the first rows of dev, with the lower bound of the metric `compared`."""
    loader = model.context.configured("rwr/ItemLoader")(
        model.work.examples, split="dev", vocabulary=model.stored["vocabulary"], fetch=fetch
    )
    dev, queries = os.path.join(model.work.log, "dev.parquet"), model.completions.queries
    return watch.watch(loader, model.config, tables, mesh, rows, dev, queries, compared)


def _recent(log: str, examples: ItemExamples, rows: np.ndarray, days: float | None) -> np.ndarray:
    """The rows whose searches are in the last `days` of the train split; None: all rows."""
    import pyarrow.parquet as pq

    if days is None:
        return rows
    table = pq.read_table(os.path.join(log, "train.parquet"), columns=["timestamp_ms"])
    times = table["timestamp_ms"].to_numpy()
    row_times = times[examples.column("row")[rows]]
    return rows[row_times > times.max(initial=0) - days * DAY_MS]
