"""The stages that use the trained model: scored on a split, and asked for one list."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint_file
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest
from onesug_jax.stages import opened
from onesug_jax.train import distributed

if TYPE_CHECKING:
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.represent.related import RelatedQueries


def suggester(
    context: Context,
    *,
    model: str = "auto",
    targets: str = "auto",
    closed: bool = True,
    must_start: bool = True,
    mode: str = "score",
    blocked: str | None = None,
    least_count: int = 0,
    per_group: int | None = None,
    params=None,
) -> Suggester:
    """The trained model of WORK_DIR, ready to write lists.

    `model` says which: "pretrain" (SFT), "rwr" (preference-aligned), or "auto": the aligned one if
    there is one. `targets` says what it writes: "query", "id" (semantic ids, mapped back to
    queries), or "auto": queries if it was trained on them. `closed` keeps lists to queries of the
    train split, `must_start` to those that start with the prefix wherever one does. `mode` says how
    lists are made: "beam" writes them, "score" ranks what the prefix may lead to, "hybrid" does
    both with fewer, shorter beams (`ScoreConfig`). Queries that hold a term of the file `blocked`,
    or were searched less often than `least_count`, are never shown. With `per_group`, so many
    queries whose semantic ids begin with one code lead a list, before those of other codes
    (`decode.grouping`). `params` stands in for the
    stored parameters.
    """
    from onesug_jax.decode.grouping import Groups
    from onesug_jax.decode.known import Filter
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.tasks.features import FeatureSpec, Featurizer
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.train.checkpoint import load_params

    if model not in ("auto", "pretrain", "rwr"):
        raise UserError(f"suggester.model = {model!r}: expected 'auto', 'pretrain' or 'rwr'")
    stage = opened.model_stage(context) if model == "auto" else model
    stored = opened.model_description(context, stage)
    vocabulary = Vocabulary.load(context.work.vocab)
    if targets not in ("auto", "query", "id"):
        raise UserError(f"suggester.targets = {targets!r}: expected 'auto', 'query' or 'id'")
    if targets == "auto":
        on_ids = any(task.endswith("request_to_id") for task in stored["tasks"])
        on_queries = any(task.endswith("query") for task in stored["tasks"])
        targets = "id" if on_ids and not on_queries else "query"
    opened.cache_compiled(context)
    index = opened.completions(context)
    groups = None
    if per_group is not None:
        kinds = opened.semantic_ids(context).ids[:, 0]
        groups = Groups(sorted(index.queries), kinds, per_group)
    return Suggester(
        Seq2Seq(ModelConfig(**{**stored["model"], "dropout": 0.0})),
        load_params(getattr(context.work, stage)) if params is None else params,
        Featurizer(vocabulary, FeatureSpec(**stored["features"])),
        context.configured("BeamConfig")(),
        queries=dict(zip(index.queries, index.counts.tolist(), strict=True)) if closed else None,
        must_start=must_start,
        ids=opened.semantic_ids(context) if targets == "id" else None,
        mode=mode,
        scoring=context.configured("ScoreConfig")(),
        shown=Filter.read(blocked, least_count),
        groups=groups,
    )


def score(
    context: Context,
    split: str,
    *logs: str,
    model: str | None = None,
    params=None,
    limit: int | None = None,
    rivals: bool = True,
):
    """Scores one file of a log with the model and its rivals; `logs` are folders of history.

    `model` and `params` as `suggester` takes them. With `limit`, its first rows and the model alone
    (training watches itself so). Where the model is preference-aligned, the one that it started
    from is a rival, `sft`.
    """
    from onesug_jax.evaluate import baselines, evaluator
    from onesug_jax.evaluate.cascade_training import load
    from onesug_jax.logs.history import with_history
    from onesug_jax.tasks.features import history_of
    from onesug_jax.train import mesh as meshes

    chosen = {} if model is None else {"model": model}
    if params is not None and distributed.place_among()[1] > 1:
        params = meshes.on_host(params)  # each process writes its share of the lists by itself
    suggester = context.configured("suggester")
    writer = suggester(context, params=params, **chosen)
    spec = writer.featurizer.spec
    known = opened.related(context, spec)
    index = opened.completions(context)
    files = dict.fromkeys(path for log in logs for path in opened.splits(log).values())
    rows = with_history(list(files), keep=split, history=history_of(spec, known))
    lists = {"model": writer.suggest}
    if limit is not None:
        rows = rows.read_all().slice(0, limit).to_batches()
    elif rivals:
        lists["most_popular"] = baselines.MostPopular(index).suggest
        if model is None and opened.model_stage(context) == "rwr":
            lists["sft"] = suggester(context, model="pretrain").suggest
        if opened.finished(context.home.cascade):
            rival = _rival_parts(dataclasses.replace(context, work=context.home))
            lists["cascade"] = load(context.home.cascade, *rival).suggest
    return evaluator.evaluate(
        rows,
        lists,
        prefix_counts=evaluator.prefix_counts(os.path.join(context.home.log, "train.parquet")),
        context=known,
        candidates=writer.candidates,
        known=len(index),
        slices=context.configured("SliceSpec")(),
        told=lambda query: index.find(query) >= 0,
        process=distributed.place_among(),
        exchange=distributed.exchanged,
    )


def judged(metrics) -> dict[str, float]:
    """What one model is preferred to another by, in per cent, out of its metrics by slice.

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


def cascade(context: Context) -> None:
    """The rival: recall, pre-rank and a LightGBM ranker, trained on the train split, into
    WORK_DIR/cascade.
    """
    from onesug_jax.evaluate import cascade_training as rival

    rows, known, config = _rival_parts(context)
    report = rival.train(rows, known, config, context.work.cascade, context.seed)
    print(
        f"cascade: {report['rows']:,} newest rows, the query of {report['recalled']:,} recalled; "
        f"{report['trees']} trees"
    )
    for name, share in list(report["importance"].items())[:8]:
        print(f"  {name:<16} {100 * share:5.1f} % of the gain")


def _rival_parts(context: Context):
    """Rows of the train split, what is mined and aligned, and the sizes of the cascade."""
    from onesug_jax.evaluate import cascade_training as rival
    from onesug_jax.tasks.features import FeatureSpec

    train = os.path.join(context.work.log, "train.parquet")
    known = opened.related(context, FeatureSpec())
    rows = rival.read_rows([train], train, known.history)
    return rows, known, context.configured("CascadeConfig")()


def evaluate(
    context: Context,
    *,
    split: str = "dev",
    name: str | None = None,
    headline: Sequence[str] = ("hr@16", "mrr@16"),
) -> None:
    """Model and most popular completion on a split, into WORK_DIR/report/NAME.

    With a LOG that the command names, other than the one WORK_DIR was made from, that log is
    scored: its `split` where it has one, else all of it, with the histories of both. `name` is by
    default the split's, or the log's. `headline` names the metrics of the table that is printed
    first.
    """
    from onesug_jax.evaluate import card, page, report
    from onesug_jax.tasks.features import FeatureSpec

    home, out, log = context.home, context.out, context.home.log
    logs = [log]
    if _own_log(context):
        log = os.path.join(out, "log")
        read = functools.partial(
            context.configured("ingest"),
            dev_days=0.0,
            test_days=0.0,
            clicks=context.configured("clicks")(),
        )
        distributed.agreed(lambda: bool(read(log=context.log, out=log)))
        logs.append(log)
        split = split if split in opened.splits(log) else next(iter(opened.splits(log)))
    path = os.path.join(log, f"{split}.parquet")
    scores = score(context, path, *logs)
    if not distributed.first():
        return
    folders = {"align": home.encoder, "pretrain": home.pretrain, "rwr": home.rwr}
    curves = {stage: os.path.join(folder, "metrics.jsonl") for stage, folder in folders.items()}
    report.write_report(scores, out, learning_curves=curves)
    for picture in ("code_usage.png", "id_map.png", "id_learning_curve.png"):
        made = os.path.join(home.semantic_ids, picture)
        if os.path.exists(made):
            shutil.copy(made, out)
    known = opened.related(context, FeatureSpec(soft=False))
    groups = report.example_prefixes(scores.rows, context.configured("SliceSpec")().frequent)
    report.write_related(
        {name: {p: known.related([p], [()])[0] for p in found} for name, found in groups.items()},
        out,
    )
    page.write_page(scores, out)
    card.write_card(scores, out, opened.facts(context))


def _own_log(context: Context) -> bool:
    """Whether this command names a log that WORK_DIR/log was not ingested from."""
    if not (context.named and "LOG" in context.given and context.macros["LOG"]):
        return False
    made = Manifest.read(context.home.log)
    found = {fingerprint_file(path) for path in context.work.expand(context.log).values()}
    return made is None or set(made.inputs.values()) != found


def report_name(context: Context) -> str:
    """The folder of an evaluation inside WORK_DIR/report: the split's name, or the log's."""
    name, split = context.settings["evaluate.name"], context.settings["evaluate.split"]
    if name is None and _own_log(context):
        name = os.path.splitext(os.path.basename(context.log.rstrip(os.sep)))[0]
    return name or split


def check_evaluate(context: Context) -> None:
    """Whether the split and the metrics that are asked for exist.

    Raises:
      UserError: WORK_DIR/log has no such split, or an evaluation no such metric.
    """
    from onesug_jax.evaluate.evaluator import METRICS

    for name in context.settings["evaluate.headline"]:
        if name not in METRICS:
            raise UserError(f"evaluate.headline: {name!r}: expected some of {', '.join(METRICS)}")
    if not re.fullmatch(r"[\w.-]+", report_name(context)):
        raise UserError(
            f"evaluate.name = {report_name(context)!r}: expected letters, digits, '_', '-' and '.'"
        )
    split, there = context.settings["evaluate.split"], opened.splits(context.home.log)
    if there and split not in there and not _own_log(context):
        raise UserError(
            f"evaluate.split = {split!r}: {context.home.log} holds {', '.join(there)}; choose one "
            "of them"
        )


def scored(context: Context) -> tuple[str, ...]:
    """What an evaluation reads: the model, the log, and a log of its own that the command names."""
    own = (context.log,) if _own_log(context) else ()
    there = opened.finished(context.home.cascade)
    rival = (context.home.join("cascade", "ranker.txt"),) if there else ()
    bundled = context.work.path != context.home.path
    model = ("*/*",) if bundled else (*opened.BUNDLED, "pretrain/model.json")
    return (context.home.join("log/*.parquet"), *model, *rival, *own)


def show_report(context: Context) -> None:
    """The table of the last evaluation."""
    from onesug_jax.evaluate import report

    folder = context.home.join("report", report_name(context))
    metrics = report.read_metrics(folder)
    shown = context.settings["evaluate.headline"]
    table = report.format_headline(metrics, shown=shown)
    print(f"\n{table}\n\n{report.format_slices(metrics, metric=shown[-1])}\n")
    print(f"to look at: {os.path.join(folder, 'index.html')}", flush=True)


def suggest(context: Context) -> None:
    """Suggestions for --prefix, or for whatever is typed at a prompt."""
    options = context.options
    answer = answering(context)

    def answered(prefix: str) -> dict:
        return answer(prefix, options.history, options.profile, options.k)

    if options.prefix is not None:
        answered(options.prefix)  # compiles; what is timed is the answer
        _print_suggestions(answered(options.prefix), options.json)
        return
    _prompt(answered, options)


def answering(context: Context) -> Callable[..., dict]:
    """The model in use as a function, for whoever asks more than once:

    `(prefix, history=(), profile=(), k=None)`, history oldest first -> the object that --json
    prints.
    """
    model = context.configured("suggester")(context)
    return functools.partial(_answer, model, opened.related(context, model.featurizer.spec))


def _answer(
    model: Suggester,
    known: RelatedQueries,
    prefix: str,
    history: Sequence[str] = (),
    profile: Sequence[str] = (),
    k: int | None = None,
) -> dict:
    import time

    from onesug_jax.logs.schema import normalise_prefix, normalise_query
    from onesug_jax.tasks.features import make_requests

    began = time.perf_counter()
    history = [normalise_query(query) for query in reversed(history)]
    history = [query for query in dict.fromkeys(history) if query]
    prefix = normalise_prefix(prefix)
    requests = make_requests(known, [prefix], [history], [profile], model.candidates)
    found = model.suggest(requests, k)[0]
    return {
        "prefix": prefix,
        "history": history,
        "related": list(requests[0].related),
        "suggestions": [dataclasses.asdict(suggestion) for suggestion in found],
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }


def _print_suggestions(answer: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    after = f" after {', '.join(answer['history'])}" if answer["history"] else ""
    print(f"{answer['prefix']!r}{after}:")
    for place, suggestion in enumerate(answer["suggestions"], 1):
        print(f"  {place:>2}  {suggestion['text']:<48} {suggestion['score']:8.3f}")
    print(f"  in {answer['milliseconds']} ms", flush=True)


def _prompt(answered: Callable[[str], dict], options) -> None:
    """Reads prefixes until the end of input; a line `=query` is a search, which is remembered."""
    print("Type a prefix and press enter; =query adds a search to the history; ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if line.startswith("="):
            options.history = [*options.history, line[1:]]
            print(f"history, oldest first: {', '.join(options.history)}")
            continue
        _print_suggestions(answered(line), options.json)


def suggest_flags(parser: argparse.ArgumentParser) -> None:
    """What was typed, by whom, and how to answer."""
    parser.add_argument("--prefix", help="what was typed; without it, an interactive prompt")
    parser.add_argument(
        "--history", action="append", default=[], help="a query of just now, oldest first; repeat"
    )
    parser.add_argument(
        "--profile", action="append", default=[], help="a static profile value; repeat"
    )
    parser.add_argument("--k", type=int, default=None, help="how many suggestions (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a request")
