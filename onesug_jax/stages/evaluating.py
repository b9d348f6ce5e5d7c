"""The stage `evaluate`, which scores a split and writes the report, and the stage `cascade`."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import SPLITS, Manifest, finished, read_result, split_files
from onesug_jax.stages import held_state, scoring, trained
from onesug_jax.stages.log import reader
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.train import distributed


def cascade(context: Context) -> None:
    """Trains the rival (recall, pre-rank and a LightGBM ranker) on the examples with items, into
    WORK_DIR/cascade.
    """
    from onesug_jax.evaluate import cascade_training as rival
    from onesug_jax.tasks.item_examples import ItemExamples

    report = rival.train(
        ItemExamples(context.work.examples, "train", fetch=fetch),
        Parts(context.work).tables(),
        context.configured("CascadeConfig")(),
        context.configured("AsOfConfig")(),
        context.work.cascade,
        context.seed,
    )
    print(
        f"cascade: {report['rows']:,} newest rows, the query of {report['recalled']:,} recalled; "
        f"{report['trees']} trees"
    )
    for name, share in list(report["importance"].items())[:8]:
        print(f"  {name:<16} {100 * share:5.1f} % of the gain")


def evaluate(
    context: Context,
    *,
    split: str = "dev",
    name: str | None = None,
    freshness: str | None = None,
    headline: Sequence[str] = ("hr@16", "mrr@16"),
    metrics: Sequence[str] = (),
) -> None:
    """Scores the model and its rivals on a split, into WORK_DIR/report/NAME.

    If the command names a LOG other than the one WORK_DIR was made from, that log is scored: its
    `split` if it has it, else all of it, with the histories of both logs. `name` defaults to the
    name of the split or the log, and the freshness if it is set. `headline` names the metrics of
    the table that is printed first. `metrics` are import paths of further metrics, functions of the
    ranks int [N] and k, reported as NAME@16.

    A model with items is scored through time: each request sees the events until `freshness` before
    it ("1m", "6h", "1d"; "inf": no event of the split, the frozen protocol; None:
    `AsOfConfig.freshness_ms` of training), and enters the counts afterwards.
    """
    from onesug_jax.evaluate import card, page, report
    from onesug_jax.tasks.features import FeatureSpec

    home, out, log = context.home, context.out, context.home.log
    logs = [log]
    if _own_log(context):
        log = os.path.join(out, "log")
        read = functools.partial(reader(context), dev_share=0.0, test_share=0.0)
        distributed.run_on_primary_and_broadcast(lambda: bool(read(log=context.log, out=log)))
        context.share()
        logs.append(log)
        split = split if split in split_files(log) else next(iter(split_files(log)))
    path = os.path.join(log, f"{split}.parquet")
    model = TrainedModel(context)
    scores = scoring.score(model, path, *logs)
    if not distributed.is_primary():
        return
    folders = {"align": home.encoder, "pretrain": home.pretrain, "rwr": home.rwr}
    curves = {stage: os.path.join(folder, "metrics.jsonl") for stage, folder in folders.items()}
    report.write_report(scores, out, learning_curves=curves)
    for picture in ("code_usage.png", "id_map.png", "id_learning_curve.png"):
        path = os.path.join(home.semantic_ids, picture)
        if os.path.exists(path):
            shutil.copy(path, out)
    finder = model.related(FeatureSpec(soft=False))
    groups = report.example_prefixes(scores.rows, context.configured("SliceSpec")().frequent)
    report.write_related(
        {name: {p: finder.related([p])[0] for p in prefixes} for name, prefixes in groups.items()},
        out,
    )
    page.write_page(scores, out)
    written = card.write_card(scores, out, _facts(model))
    if context.work.path != home.path and len(logs) == 1 and not context.mirror:
        with atomic_write(os.path.join(context.work.path, card.FILE)) as file:  # part of the bundle
            file.write(pathlib.Path(written).read_bytes())


def _facts(model: TrainedModel) -> dict:
    """The facts about a model for `evaluate.card`, from the files of the stages."""
    home = model.context.home
    stages = ("pretrain", "rwr")[: 1 + (model.stage == "rwr")]
    manifests = {name: Manifest.read(home.join(name)) for name in ("log", "mined", *stages)}
    settings = {name: made.settings if made else {} for name, made in manifests.items()}
    log = manifests["log"]
    return {
        "stage": model.stage,
        "model": model.stored["model"],
        "parameters": model.config.parameters(),
        "features": model.stored["features"],
        "log": read_result(home.join("log", "report.json")),
        "mined": read_result(model.work.join("mined", "report.json")),
        "min_users": settings["mined"].get("mine.min_users", 1),
        "steps": {name: settings[name].get(f"{name}.steps", 0) for name in stages},
        "seed": settings["pretrain"].get("SEED"),
        "simulated": log is not None and any(path.startswith("simulated") for path in log.inputs),
    }


def _own_log(context: Context) -> bool:
    """Whether this command names a log that WORK_DIR/log was not ingested from."""
    if not (context.named and "LOG" in context.given and context.macros["LOG"]):
        return False
    made = Manifest.read(context.home.log)
    files = set(map(context.work.fingerprint, context.work.expand(context.log).values()))
    return made is None or set(made.inputs.values()) != files


def report_name(context: Context) -> str:
    """The folder of an evaluation inside WORK_DIR/report: the name of the split or the log, and the
    freshness if it is set.
    """
    name, split, freshness = (
        context.settings[f"evaluate.{key}"] for key in ("name", "split", "freshness")
    )
    if name is not None:
        return name
    if _own_log(context):
        split = os.path.splitext(os.path.basename(context.log.rstrip(os.sep)))[0]
    return f"{split}_{freshness}" if freshness else split


def check_evaluate(context: Context) -> None:
    """Checks the split, the metrics and the freshness.

    Raises:
      UserError: WORK_DIR/log has no such split, there is no such metric, or `freshness` is not a
        duration.
    """
    from onesug_jax.evaluate.evaluator import METRICS
    from onesug_jax.logs.asof.config import duration_ms

    if context.settings["evaluate.freshness"]:
        duration_ms(context.settings["evaluate.freshness"])
    metrics = (*METRICS, *(f"{metric.__name__}@16" for metric in scoring.metrics_of(context)))
    for name in context.settings["evaluate.headline"]:
        if name not in metrics:
            raise UserError(f"evaluate.headline: {name!r}: expected some of {', '.join(metrics)}")
    if not re.fullmatch(r"[\w.-]+", report_name(context)):
        raise UserError(
            f"evaluate.name = {report_name(context)!r}: expected letters, digits, '_', '-' and '.'"
        )
    split = context.settings["evaluate.split"]
    splits = [name for name in SPLITS if context.home.expand(f"log/{name}.parquet")]
    if splits and split not in splits and not _own_log(context):
        raise UserError(
            f"evaluate.split = {split!r}: {context.home.log} holds {', '.join(splits)}; choose one "
            "of them"
        )


def scored(context: Context) -> tuple[str, ...]:
    """The inputs of an evaluation: the model, the log, the cascade, and a log of the command."""
    own = (context.log,) if _own_log(context) else ()
    trained_rival = finished(context.home.cascade)
    rival = (context.home.join("cascade", "ranker.txt"),) if trained_rival else ()
    bundled = context.work.path != context.home.path
    model = ("*/*",) if bundled else (*trained.BUNDLED, "pretrain/model.json")
    return (context.home.join("log/*.parquet"), *model, *rival, *own)


def shown(context: Context) -> tuple[str, ...]:
    """Further files for the report: learning curves, figures, the best possible lists; and the
    state that an evaluation starts from.
    """
    from onesug_jax.logs.simulate.table import CEILING

    curves = [f"{folder}/metrics.jsonl" for folder in ("encoder", "pretrain", "rwr")]
    state = f"examples/{held_state.FILE}"
    return (*curves, "semantic_ids/*.png", f"simulated/{CEILING}", state)


def show_report(context: Context) -> None:
    """Prints the tables of the last evaluation."""
    from onesug_jax.evaluate import report

    folder = context.home.join("report", report_name(context))
    metrics = report.read_metrics(folder)
    shown = context.settings["evaluate.headline"]
    table = report.format_headline(metrics, shown=shown)
    print(f"\n{table}\n\n{report.format_slices(metrics, metric=shown[-1])}\n")
    print(f"to look at: {os.path.join(folder, 'index.html')}", flush=True)
