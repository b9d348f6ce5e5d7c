"""Preference alignment of a model with candidate tokens: the list of a row is all its candidates.

One pass of the encoder and one step of the decoder score every candidate, so the target is compared
with all others instead of with a sample (PAPER.md section 4 draws four). Levels come with the
examples; rewards are a table of queries by level.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages import pretrained, trained, watch
from onesug_jax.stages.asof_examples import BLOCKS, LEAST_ROWS
from onesug_jax.stages.parts import SPARE, Parts, on_device
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.train import distributed

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.tasks.item_examples import ItemExamples

REWARDS_FILE = "rewards.npy"


def rewards(context: Context) -> None:
    """The reward of each query at each behaviour level, `[6, 1 + N + spare]`, into
    WORK_DIR/rewards; of many rows in workers.
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
    blocks = [Rows(folder, *each, size) for each in zip(starts, ends, strict=True)]
    counts = np.zeros((len(Level), size), np.int64)
    scratch = engine.scratch or context.work.rewards
    many = len(blocks) > 1
    found = results(engine, scratch, count_levels, blocks) if many else map(count_levels, blocks)
    for part in found:
        counts += part
    table = reward_table(counts, context.configured("RewardConfig")())
    np.save(os.path.join(context.work.rewards, REWARDS_FILE), table)
    report = {level.name: int(counts[level].sum()) for level in Level if counts[level].sum()}
    write_json(os.path.join(context.work.rewards, "report.json"), report)
    counted = ", ".join(f"{count:,} {name}" for name, count in report.items())
    print(f"{len(examples):,} rows; candidates: {counted}", flush=True)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples from number `first` to before `stop`; `size`: numbers that a query may have."""

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
        there = numbers > 0
        np.add.at(counts, (levels[there], numbers[there]), 1)
    return counts


def rwr(
    model: TrainedModel,
    *,
    steps: int,
    batch_size: int,
    dev_rows: int,
    watch_by: str,
    only_if_better: bool,
    params_from: str | None,
    evaluate_every: int,
    patience: int,
    **loop_settings: Any,
) -> None:
    """The preference-aligned model, into WORK_DIR/rwr; arguments as `prefer.rwr` takes them."""
    import numpy as np

    from onesug_jax.align import rwr as preference
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.tasks.item_loader import ItemLoader
    from onesug_jax.train import loop
    from onesug_jax.train import mesh as meshes
    from onesug_jax.train.checkpoint import load_params
    from onesug_jax.train.train_state import abstract_state, shardings_of

    context, work, stored = model.context, model.work, model.stored
    config, objective = ModelConfig(**stored["model"]), context.configured("PreferenceConfig")()
    mesh = context.configured("make_mesh")()
    table = np.load(os.path.join(work.rewards, REWARDS_FILE))
    examples = ItemLoader(work.examples, vocabulary=stored["vocabulary"], fetch=fetch).examples
    several = (examples.column("target_candidate") > 0) & (examples.column("room") > 1)
    days = context.configured("ListConfig")().days
    rows = _recent(work.log, examples, np.flatnonzero(several), days)
    if not len(rows):
        raise UserError(
            f"{examples.folder}: no row has a second candidate, so there is nothing to prefer the "
            "searched query to; the pretrain stage's model is all that can be trained on this log."
        )
    load = functools.partial(context.configured("rwr/ItemLoader"), fetch=fetch)
    loader = load(
        work.examples,
        batch_size=batch_size,
        seed=context.seed,
        process_rows=meshes.process_batch_shard(mesh, batch_size),
        vocabulary=stored["vocabulary"],
        rows=rows,
    )

    def batch_at(step: int) -> dict[str, Any]:
        batch = loader.batch_at(step)
        return {**batch, "rewards": table[batch["levels"], batch["candidates"]]}

    tables = meshes.replicate(mesh, on_device(model.tables()))
    optimizer = context.configured("rwr/make_optimizer")(steps=steps)
    stage = preference.rwr_stage(config, objective, tables=tables)
    like = abstract_state(stage, optimizer, mesh).params
    source = work.pretrain if params_from is None else params_from
    pretrained.check_vocabulary("rwr.params_from", source, stored["vocabulary"])
    frozen = load_params(source, shardings_of(like))
    dev = os.path.join(work.log, "dev.parquet")
    watched = bool(evaluate_every and dev_rows and os.path.exists(dev))
    dev_loader = load(work.examples, split="dev", vocabulary=stored["vocabulary"])
    metrics = watch.watch(dev_loader, config, tables, mesh, dev_rows) if watched else None
    print(
        f"{config.parameters():,} parameters; {loader.describe()}; {objective.loss}, beta "
        f"{objective.beta}, delta {objective.delta}, alpha {objective.alpha}",
        flush=True,
    )
    before = metrics(frozen, 0) if metrics else {}
    if before:
        said = ", ".join(f"{name} {value:.2f}" for name, value in before.items())
        print(f"rwr: the model it starts from: {said}", flush=True)
    result = loop.fit(
        preference.rwr_stage(config, objective, frozen, tables),
        batch_at=batch_at,
        batch_size=batch_size,
        mesh=mesh,
        optimizer=optimizer,
        steps=steps,
        seed=context.seed,
        folder=work.rwr,
        states=context.states,
        evaluate_every=evaluate_every if watched else 0,
        evaluate_fn=metrics,
        best_metric=watch_by if watched else None,
        patience=patience if watched else 0,
        params_from=frozen,
        identity=trained.identity(context, config, stored["vocabulary"]),
        compiler_options=context.configured("compiler_options")(mesh),
        **loop_settings,
    )
    if before and only_if_better and not watch.beats(result.best_value, before[watch_by], watch_by):
        return
    distributed.run_on_primary_and_broadcast(lambda: trained.leave_aligned(context, stored))


def _recent(log: str, examples: ItemExamples, rows: np.ndarray, days: float | None) -> np.ndarray:
    """Those of the rows whose searches are of the train split's last `days`; None: all."""
    import pyarrow.parquet as pq

    if days is None:
        return rows
    table = pq.read_table(os.path.join(log, "train.parquet"), columns=["timestamp_ms"])
    times = table["timestamp_ms"].to_numpy()
    own = times[examples.column("row")[rows]]
    return rows[own > times.max(initial=0) - days * DAY_MS]
