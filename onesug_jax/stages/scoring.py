"""Scores of a model's lists: for evaluation, training and updates."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.import_path import named
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.tables import local_log
from onesug_jax.pipeline.workdir import Manifest, finished, split_files
from onesug_jax.stages import held_state
from onesug_jax.stages.trained_model import TrainedModel, before_log
from onesug_jax.train import distributed

if TYPE_CHECKING:
    from onesug_jax.decode.suggester import Suggester


SFT = "sft"  # as a rival: the model that a preference-aligned one was trained from


def score(
    model: TrainedModel,
    split: str,
    *logs: str,
    rivals: str = "all",
    sample: int | None = None,
):
    """Scores one file of a log with a model and its rivals; `logs` are folders of history.

    Args:
      rivals: "all", "sft" (only the model that it was aligned from), or "none".
      sample: the approximate number of rows to score, evenly spread; None: all.
    """
    from onesug_jax.evaluate import baselines

    if model.spec.items:
        return replayed(model, split, *logs, rivals=rivals, sample=sample)
    if model.context.settings.get("evaluate.freshness"):
        raise UserError(
            "evaluate.freshness: expected a model with items (FeatureSpec.items = True); the model "
            "in use reads text alone and nothing as of a moment. Leave it out."
        )
    lists: dict[str, Callable] = {"model": model.text_suggester().suggest}
    if rivals == "all":
        lists[baselines.POPULAR] = baselines.most_popular(model.completions)
    if rivals != "none" and model.reference:
        lists[SFT] = model.reference.text_suggester().suggest
    rows = _rows(model, split, logs)
    if sample is not None:
        table = rows.read_all()
        numbers = range(0, len(table), max(1, -(-len(table) // sample)))
        rows = table.take(list(numbers)).to_batches()
    return _evaluation(model)(rows, lists)


def watch_lists(
    model: TrainedModel, split: str, log: str, rows: int
) -> Callable[[Any], tuple[Mapping, Mapping[str, Sequence[str]]]]:
    """`params` -> metrics by slice of a text model with these parameters on the first `rows` rows
    of a split, and the lists of a few rows. Rows and suggester are made once.
    """
    from onesug_jax.train import mesh as meshes

    batches = _rows(model, split, [log]).read_all().slice(0, rows).to_batches()
    evaluation = _evaluation(model)
    writer: Suggester | None = None

    def scores(params) -> tuple[Mapping, Mapping[str, Sequence[str]]]:
        nonlocal writer
        if distributed.place_among()[1] > 1:
            params = meshes.on_host(params)  # each process writes its own share of the lists
        if writer is None:
            writer = model.text_suggester(params)
        else:
            writer.use(params)
        result = evaluation(batches, {"model": writer.suggest})
        few = result.rows.slice(0, 4).to_pylist()
        lists = {f"{row['prefix']} -> {row['truth']}": row["list_model"][:6] for row in few}
        return result.metrics["model"], lists

    return scores


def _rows(model: TrainedModel, split: str, logs: Sequence[str]):
    """A reader of a file's rows with their histories."""
    from onesug_jax.logs.history import with_history

    files = dict.fromkeys(path for log in logs for path in split_files(log).values())
    return with_history(list(files), keep=split, history=model.spec.history)


def _evaluation(model: TrainedModel) -> Callable[..., Any]:
    """`evaluator.evaluate` for rows and lists of a text model."""
    from onesug_jax.evaluate import evaluator

    context, index = model.context, model.completions
    return functools.partial(
        evaluator.evaluate,
        prefix_counts=evaluator.prefix_counts(os.path.join(context.home.log, "train.parquet")),
        context=model.related(model.spec),
        indexed=len(index),
        slices=context.configured("SliceSpec")(),
        further=metrics_of(context),
        visible=lambda query: index.find(query) >= 0,
        process=distributed.place_among(),
        exchange=distributed.exchanged,
    )


def replayed(
    model: TrainedModel,
    split: str,
    *logs: str,
    rivals: str = "all",
    freshness: str | None = None,
    sample: int | None = None,
):
    """Scores one file of a log, replayed through time, with a model of items and its rivals.

    Args:
      split: the file.
      logs: folders with all events before and during it.
      rivals, sample: as in `score`.
      freshness: as in `evaluate`; None: the setting.
    """
    from onesug_jax.evaluate import evaluator
    from onesug_jax.evaluate.replay import plain_requests, replay, settings_at
    from onesug_jax.logs.asof.config import MINUTE_MS
    from onesug_jax.retrieval.tables import words_of

    context = model.context
    freshness = freshness or context.settings.get("evaluate.freshness")
    config, frozen = settings_at(context.configured("AsOfConfig")(), freshness)
    made = Manifest.read(context.home.examples)
    if made is not None and config.new_from_ms is None:  # in a version that `update` made
        config = dataclasses.replace(
            config, new_from_ms=made.settings.get("AsOfConfig.new_from_ms")
        )
    changed = {name: getattr(config, name) for name in ("freshness_ms", "new_from_ms")}
    state = before_log(context, model, **changed)
    files = list(dict.fromkeys(path for log in logs for path in split_files(log).values()))
    stored = os.path.join(context.home.examples, held_state.FILE)
    first = held_state.restore(state, stored, files, split)
    table = model.tables()
    models = {"model": model}
    if rivals != "none" and model.reference:
        models[SFT] = model.reference
    shapes: Any = {"batch_sizes": (32,), "pasts": ()}  # few: each takes seconds to compile
    writers = {name: m.item_suggester(state, table, **shapes) for name, m in models.items()}
    lists = {name: writer.suggest for name, writer in writers.items()}
    listed = {}
    if rivals == "all":
        lists |= _counted(model, state)
        if finished(context.home.cascade):
            lists["cascade"] = _cascade(model, state, table)
        listed = _best_possible(context, split)
    filled = state.first

    def make(state, rows, asked):
        nonlocal filled
        if len(state) > filled:
            numbers = range(filled, len(state))
            table.add(numbers, [state.text(n) for n in numbers], model.encode)
            for writer in writers.values():
                writer.refresh(vars(table), filled + 1, len(state) + 1)
            filled = len(state)
        return plain_requests(state, rows, asked)

    process = distributed.place_among()
    rows = replay(
        state,
        files,
        split,
        lists,
        first=first,
        frozen=frozen,
        make=make,
        listed=listed,
        prefix_counts=evaluator.prefix_counts(os.path.join(context.home.log, "train.parquet")),
        visible=lambda query: state.number(query) >= 0,
        process=process,
        sample=sample,
    )
    rows = evaluator.merged(rows, process, distributed.exchanged)
    scores = evaluator.summarise(
        rows,
        indexed=len(model.completions),
        slices=context.configured("SliceSpec")(),
        further=metrics_of(context),
        plausible=lambda query: all(word in table.frequency for word in words_of(query)),
    )
    delay = freshness or f"{config.freshness_ms / MINUTE_MS:g}m"
    return evaluator.Evaluation(scores, rows, delay)


def metrics_of(context: Context) -> list[Callable]:
    """The user's metrics, imported by their paths in `evaluate.metrics`."""
    paths = context.settings.get("evaluate.metrics", ())
    return [named("evaluate.metrics", path, {}) for path in paths]


def _counted(model: TrainedModel, state) -> dict[str, Callable]:
    """The rivals that count searches: of train, and as of each request."""
    from onesug_jax.evaluate import baselines

    popular = {baselines.POPULAR: baselines.most_popular(model.completions)}
    return popular | baselines.as_of(state.text, state.config)


def _cascade(model: TrainedModel, state, table):
    """The trained cascade over the queries of an as-of state."""
    from onesug_jax.evaluate.cascade_training import load

    index, config = model.index, model.context.configured("CascadeConfig")()
    place = model.context.home.cascade
    return load(place, config, table, state.text, lambda prefix: index.prefix_number(prefix) + 1)


def _best_possible(context: Context, split: str) -> dict[str, Mapping[str, Sequence[str]]]:
    """The lists of a simulated log's oracle, if there are any."""
    from onesug_jax.evaluate import ceiling
    from onesug_jax.evaluate.rows import ORDERS

    folder = context.macros["LOG"] or os.path.join(context.macros["WORK_DIR"], "simulated")
    folder = local_log(folder)
    if os.path.basename(split) == "train.parquet" or not ceiling.available(folder):
        return {}
    lists, for_orders = ceiling.load(folder)
    return {ceiling.NAME: lists, ceiling.NAME + ORDERS: for_orders}


def judged(metrics) -> dict[str, float]:
    """The metrics for comparing models, in per cent, from the metrics by slice.

    `value` is the mean of MRR@16 over all searches and MRR@16 over those with an order; without
    orders it is MRR@16 over all searches.
    """
    every, order = metrics["all"], metrics["order"]
    order = order if order["n"] else every
    return {
        "hr@16": every["hr@16"],
        "mrr@16": every["mrr@16"],
        "order_mrr@16": order["mrr@16"],
        "value": (every["mrr@16"] + order["mrr@16"]) / 2,
    }
