"""Lists of the model in use, and their scores: for evaluation, training and updates."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.tables import local_log
from onesug_jax.stages import opened, trained
from onesug_jax.train import distributed

if TYPE_CHECKING:
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.tasks.features import FeatureSpec


def suggester(
    context: Context,
    *,
    model: str = "auto",
    targets: str = "auto",
    closed: bool = True,
    must_start: bool = True,
    blocked: str | None = None,
    least_count: int = 0,
    params=None,
) -> Suggester:
    """The trained model of WORK_DIR, ready to write lists.

    `model` says which: "pretrain" (SFT), "rwr" (preference-aligned), or "auto": the aligned one if
    there is one. `targets` says what it writes: "query", "id" (semantic ids, mapped back to
    queries), or "auto": queries if it was trained on them. `closed` restricts lists to queries of
    the train split, `must_start` to those that start with the prefix wherever one does. Queries
    that hold a term of the file `blocked`, or were searched less often than `least_count`, are
    never shown. `params` stands in for the stored parameters.
    """
    from onesug_jax.decode.closed_set import Filter
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.tasks.features import FeatureSpec, Featurizer
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.train.checkpoint import load_params

    if model not in ("auto", "pretrain", "rwr"):
        raise UserError(f"suggester.model = {model!r}: expected 'auto', 'pretrain' or 'rwr'")
    stage = trained.model_stage(context) if model == "auto" else model
    stored = trained.model_description(context, stage)
    vocabulary = Vocabulary.load(context.work.vocab)
    if targets not in ("auto", "query", "id"):
        raise UserError(f"suggester.targets = {targets!r}: expected 'auto', 'query' or 'id'")
    if targets == "auto":
        on_ids = any(task.endswith("request_to_id") for task in stored["tasks"])
        on_queries = any(task.endswith("query") for task in stored["tasks"])
        targets = "id" if on_ids and not on_queries else "query"
    opened.cache_compiled(context)
    index = opened.completions(context)
    return Suggester(
        Seq2Seq(ModelConfig(**{**stored["model"], "dropout": 0.0})),
        load_params(getattr(context.work, stage)) if params is None else params,
        Featurizer(vocabulary, FeatureSpec(**stored["features"])),
        context.configured("BeamConfig")(),
        queries=dict(zip(index.queries, index.counts.tolist(), strict=True)) if closed else None,
        must_start=must_start,
        ids=opened.semantic_ids(context) if targets == "id" else None,
        shown=Filter.read(blocked, least_count),
    )


def score(context: Context, split: str, *logs: str, rivals: bool = True, sample: int | None = None):
    """Scores one file of a log with the model in use and its rivals; `logs` are folders of history.

    `sample`: about so many of its rows, evenly spread; None: all.
    Where the model is preference-aligned, the one that it started from is a rival, `sft`.
    """
    from onesug_jax.evaluate import baselines

    stage = trained.model_stage(context)
    if trained.model_description(context, stage)["features"]["items"]:
        return replayed(context, split, *logs, rivals=rivals, sample=sample)
    if context.settings.get("evaluate.freshness"):
        raise UserError(
            "evaluate.freshness: expected a model with items (FeatureSpec.items = True); the model "
            "in use reads text alone and nothing as of a moment. Leave it out."
        )
    suggester = context.configured("suggester")
    writer = suggester(context)
    lists = {"model": writer.suggest}
    if rivals:
        lists["most_popular"] = baselines.MostPopular(opened.completions(context)).suggest
        if stage == "rwr":
            lists["sft"] = suggester(context, model="pretrain").suggest
    spec = writer.featurizer.spec
    rows = _rows(split, logs, spec)
    if sample is not None:
        table = rows.read_all()
        places = range(0, len(table), max(1, -(-len(table) // sample)))
        rows = table.take(list(places)).to_batches()
    return _evaluation(context, spec)(rows, lists)


def watch_lists(context: Context, split: str, log: str, rows: int) -> Callable[[Any], Mapping]:
    """`params` -> metrics by slice of the pretrain stage's text model on the first `rows` rows of a
    split. The rows and their histories are read once, and one suggester writes all lists.
    """
    from onesug_jax.tasks.features import FeatureSpec
    from onesug_jax.train import mesh as meshes

    spec = FeatureSpec(**trained.model_description(context, "pretrain")["features"])
    given = _rows(split, [log], spec).read_all().slice(0, rows).to_batches()
    evaluation = _evaluation(context, spec)
    writer: Suggester | None = None

    def scores(params) -> Mapping:
        nonlocal writer
        if distributed.place_among()[1] > 1:
            params = meshes.on_host(params)  # each process writes its share of the lists by itself
        if writer is None:
            writer = context.configured("suggester")(context, model="pretrain", params=params)
        else:
            writer.use(params)
        return evaluation(given, {"model": writer.suggest}).metrics["model"]

    return scores


def _rows(split: str, logs: Sequence[str], spec: FeatureSpec):
    """A reader of a file's rows with their histories."""
    from onesug_jax.logs.history import with_history

    files = dict.fromkeys(path for log in logs for path in opened.splits(log).values())
    return with_history(list(files), keep=split, history=spec.history)


def _evaluation(context: Context, spec: FeatureSpec) -> Callable[..., Any]:
    """`evaluator.evaluate` of rows and lists, with what a text model's requests need."""
    from onesug_jax.evaluate import evaluator

    index = opened.completions(context)
    return functools.partial(
        evaluator.evaluate,
        prefix_counts=evaluator.prefix_counts(os.path.join(context.home.log, "train.parquet")),
        context=opened.related(context, spec),
        indexed=len(index),
        slices=context.configured("SliceSpec")(),
        visible=lambda query: index.find(query) >= 0,
        process=distributed.place_among(),
        exchange=distributed.exchanged,
    )


def item_suggester(context: Context, state, table, *, model: str = "auto"):
    """The trained model with candidate tokens, over the queries of an as-of state.

    Args:
      state: numbers the queries. table: `QueryTables` of them.
      model: "pretrain", "rwr", or "auto": the aligned one if there is one.
    """
    from onesug_jax.decode.item_suggester import ItemSuggester
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.stages import items
    from onesug_jax.tasks.features import FeatureSpec, Featurizer
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.train.checkpoint import load_params

    stage = trained.model_stage(context) if model == "auto" else model
    stored = trained.model_description(context, stage)
    opened.cache_compiled(context)
    index = items.index(context.work)
    return ItemSuggester(
        Seq2Seq(ModelConfig(**{**stored["model"], "dropout": 0.0})),
        load_params(getattr(context.work, stage)),
        Featurizer(Vocabulary.load(context.work.vocab), FeatureSpec(**stored["features"])),
        vars(table),
        state.text,
        lambda prefix: index.prefix_number(prefix) + 1,
        writing=context.configured("WritingConfig")(),
    )


def replayed(
    context: Context,
    split: str,
    *logs: str,
    rivals: bool = True,
    freshness: str | None = None,
    writers: dict | None = None,
    sample: int | None = None,
):
    """Scores one file of a log, replayed through time, with the model and its rivals.

    Args:
      split: the file. logs: folders with all that happened before and during it.
      freshness: as `evaluate` takes it; None: as it is set.
      sample: about so many of its rows, evenly spread, are scored; None: all.
      writers: suggesters by name that an earlier call has left here, used again; they are compiled
        once.
    """
    from onesug_jax.evaluate import evaluator
    from onesug_jax.evaluate.replay import plain_requests, replay, settings_at
    from onesug_jax.logs.asof.config import MINUTE_MS
    from onesug_jax.retrieval.tables import words_of
    from onesug_jax.stages import items

    freshness = freshness or context.settings.get("evaluate.freshness")
    config, frozen = settings_at(context.configured("AsOfConfig")(), freshness)
    state = items.state(context, freshness_ms=config.freshness_ms)
    table = items.tables(context)
    wanted = {"model": "auto"}
    if rivals and trained.model_stage(context) == "rwr":
        wanted["sft"] = "pretrain"
    writers = {} if writers is None else writers
    for name, stage in wanted.items():
        if name in writers:
            writers[name].text_of = state.text
            writers[name].refresh(vars(table), 1, len(table.vectors))
        else:
            writers[name] = item_suggester(context, state, table, model=stage)
    lists = {name: writers[name].suggest for name in wanted}
    queries = opened.completions(context)
    listed = {}
    if rivals:
        lists |= _counted(context, state)
        if opened.finished(context.home.cascade):
            lists["cascade"] = _cascade(context, state, table).suggest
        listed = _best_possible(context, split)
    encode = functools.cache(lambda: opened.encoder(context.work))
    filled = [state.first]

    def make(state, rows, asked):
        if len(state) > filled[0]:
            numbers = range(filled[0], len(state))
            table.add(numbers, [state.text(n) for n in numbers], lambda t: encode().encode(t))
            for name in wanted:
                writers[name].refresh(vars(table), filled[0] + 1, len(state) + 1)
            filled[0] = len(state)
        return plain_requests(state, rows, asked)

    process = distributed.place_among()
    rows = replay(
        state,
        list(dict.fromkeys(path for log in logs for path in opened.splits(log).values())),
        split,
        lists,
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
        indexed=len(queries),
        slices=context.configured("SliceSpec")(),
        plausible=lambda query: all(word in table.frequency for word in words_of(query)),
    )
    delay = freshness or f"{config.freshness_ms / MINUTE_MS:g}m"
    return evaluator.Evaluation(scores, rows, delay)


def _counted(context: Context, state) -> dict[str, Callable]:
    """The rivals that count searches: over all of train, and as of each request."""
    from onesug_jax.evaluate import baselines

    now = baselines.as_of(state.text, state.config)
    popular = baselines.MostPopular(opened.completions(context)).suggest
    return {"most_popular": popular, **{name: rival.suggest for name, rival in now.items()}}


def _cascade(context: Context, state, table):
    """The trained cascade over the queries of an as-of state."""
    from onesug_jax.evaluate.cascade_training import load
    from onesug_jax.stages import items

    index, config = items.index(context.work), context.configured("CascadeConfig")()
    place = context.home.cascade
    return load(place, config, table, state.text, lambda prefix: index.prefix_number(prefix) + 1)


def _best_possible(context: Context, split: str) -> dict[str, Mapping[str, Sequence[str]]]:
    """The lists of a simulated log's oracle, where there are any."""
    from onesug_jax.evaluate.ceiling import NAME, Ceiling
    from onesug_jax.evaluate.rows import ORDERS

    folder = context.macros["LOG"] or os.path.join(context.macros["WORK_DIR"], "simulated")
    folder = local_log(folder)
    if os.path.basename(split) == "train.parquet" or not Ceiling.available(folder):
        return {}
    best = Ceiling.load(folder)
    return {NAME: best.queries, NAME + ORDERS: best.for_orders}


def judged(metrics) -> dict[str, float]:
    """The metrics by which models are compared, in per cent, from the metrics by slice.

    `value` is the mean of MRR@16 over all searches and over those with an order; a split without
    orders counts all searches twice.
    """
    every, order = metrics["all"], metrics["order"]
    order = order if order["n"] else every
    return {
        "hr@16": every["hr@16"],
        "mrr@16": every["mrr@16"],
        "order_mrr@16": order["mrr@16"],
        "value": (every["mrr@16"] + order["mrr@16"]) / 2,
    }
