"""The loop M_t -> M_{t+1}: fresh feedback in, the next model out, if it is not worse (section 4).

Every version is a work directory, WORK_DIR/versions/0001, 0002, ...; WORK_DIR itself is version
0000. An update fills `<next>.new` with the ordinary stages. Fresh rows are joined to those of the
last days and mined again; encoder, vocabulary and codebooks stay unchanged; preference alignment
starts from M_t and trains on the newest days. Then both models write lists for the `dev` rows of
M_t's log, on which neither was trained, so no fresh row influences the decision. The newest fresh
rows are held out for the next update. `versions.publish` puts M_{t+1} in use in one step. An update
that is killed at any time leaves M_t in use, and the same command continues it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, link_file, link_tree, write_json
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline import remote_log, versions, workdir
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir, split_files
from onesug_jax.stages import entered, trained
from onesug_jax.stages.cpu_time import CpuTime
from onesug_jax.stages.log import reader
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.scoring import SFT, judged, score
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.stages.update_log import join, times_of

if TYPE_CHECKING:
    from onesug_jax.serve.forgotten import Forgotten

NOT_BETTER = 3  # exit code of an update that leaves M_t in use
_UNCHANGED = ("encoder", "vocab")  # folders that an update links
_READ = (*_UNCHANGED, "log", "mined", "semantic_ids", "index", "examples/asof", "pretrain", "rwr")
_STAGES = ("mine", "quantize", "index", "examples", "rewards", "rwr")
_NEW_SHARE = 0.25  # newest share of train's time: queries that first appear in it stay new
_LEAST_LISTS = 2000  # rows with preference lists, if few rows are fresh
# Settings that must not change between versions, by stage: its folder, and a prefix of their names.
_FIXED = {"mine": ("mined", "mine.min_users"), "examples": ("examples", "FeatureSpec.")}


def flags(parser: argparse.ArgumentParser) -> None:
    """The alternative to an update."""
    parser.add_argument(
        "--rollback", action="store_true", help="put the previous version in use again"
    )


def update(
    context: Context,
    *,
    window_days: float = 28.0,
    align_days: float = 3.0,
    holdout: float = 0.25,
    steps: int = 200,
    rows_a_step: int = 32,
    judge_rows: int = 5000,
    tolerance: float = 0.0,
    versions_retained: int = 5,
) -> int | None:
    """Makes the next version of WORK_DIR's model from a fresh log (LOG); returns 3 if it is worse.

    Args:
      window_days: days of the log, back from its newest row, that are mined.
      align_days: maximum number of days whose rows have preference lists; fewer if the newer rows
        are twice as many as the fresh ones, and some thousands.
      holdout: the newest share of the fresh rows, held out to score the next update.
      steps: maximum number of preference updates.
      rows_a_step: fresh rows per preference update, so that the cost depends on the fresh rows.
      judge_rows: approximate number of held-out rows, evenly spread over time, that score both
        models.
      tolerance: M_{t+1} is published if its value (mean of MRR@16 over all searches and over those
        with an order) is at most so many points below that of M_t.
      versions_retained: number of versions on the disk; the one in use and the one before it are
        never removed.
    """
    from onesug_jax.train.compiler import cache_programs

    home, cpu_time = context.work.path, CpuTime()
    if context.options.rollback:
        left, back = versions.rollback(home)
        if context.mirror:
            context.mirror.push_loose()
        print(f"version {left} is no longer in use; version {back} is")
        return None
    remote_log.copy(context.macros["LOG"])
    cache_programs(context.compiled)  # in WORK_DIR, not in the version's folder
    _publish_finished(context, versions_retained)
    served = workdir.published(home)
    base = _base(context)
    fresh = _fingerprint(context)
    earlier = versions.holding(home, fresh)
    if earlier:
        print(f"{context.log} is already in version {earlier}; nothing to do")
        return None
    version = versions.following(home)
    new = os.path.join(home, "versions", version + workdir.NEW)
    record = {"version": version, "base": os.path.relpath(served, home), "log": fresh}
    _prepare(new, base, record)
    if not split_files(os.path.join(new, "fresh")):
        reader(context)(
            log=context.log, out=os.path.join(new, "fresh"), dev_share=0.0, test_share=0.0
        )
    cpu_time.lap("ingest")
    rows = join(base, new, window_days, holdout, _forgotten(context))
    print(
        f"version {version}: {rows['fresh']:,} fresh rows, the newest {rows['held']:,} held back "
        f"for the next; {rows['again']:,} earlier ones reported again; {rows['train']:,} rows of "
        f"{window_days:g} days mined; {rows['judged']:,} that were held back before score it",
        flush=True,
    )
    cpu_time.lap("join")
    times = times_of(new)
    newest = times[-max(2 * rows["learnt"], _LEAST_LISTS) :]
    days = min(align_days, float(newest[-1] - newest[0] + 1) / DAY_MS)
    changes = {
        "encode.vectors_from": served,
        "quantize.quantiser_from": os.path.join(served, "semantic_ids"),
        "rwr.steps": min(steps, -(-rows["learnt"] // rows_a_step)),
        "rwr.evaluate_every": 0,  # the held-out rows score the result, so they must not select it
        "AsOfConfig.new_from_ms": float(times[-1] - _NEW_SHARE * (times[-1] - times[0])),
        "ListConfig.days": days,
        "examples.days": days,
        "PARAMS_FROM": None,
    }
    assert context.other is not None
    for stage in _STAGES:
        code = context.other(stage, new, changes)
        if code:
            return code
        _check_unchanged(stage, served, new)
        cpu_time.lap(stage)
    verdict = _judge(context, base, new, version, record, tolerance, judge_rows)
    cpu_time.lap("judge")
    print(f"update: {cpu_time}", flush=True)
    _publish_finished(context, versions_retained)
    return verdict


def check(context: Context) -> None:
    """Checks the initial model, the fresh log and the settings.

    Raises:
      UserError: the first check that fails.
    """
    if context.options.rollback:
        versions.before(context.work.path)
        return
    if "LOG" not in context.given or context.macros["LOG"] is None:
        raise UserError("update reads a fresh log: name it with --gin.LOG=PATH")
    holdout, window, align = (
        context.settings[f"update.{name}"] for name in ("holdout", "window_days", "align_days")
    )
    if not 0 < holdout < 1 or align <= 0 or window < align:
        raise UserError(
            "update: expected holdout between 0 and 1 and window_days >= align_days > 0; found "
            f"holdout={holdout}, window_days={window}, align_days={align}"
        )
    for name in ("rows_a_step", "judge_rows"):
        if context.settings[f"update.{name}"] < 1:
            raise UserError(f"update.{name}: expected at least 1")
    if context.settings["update.versions_retained"] < 2:
        raise UserError("update.versions_retained: expected at least 2, the one in use and before")
    if not context.work.expand(context.log):
        raise UserError(f"update reads {context.log}, and there is no such file or folder")
    workdir.model_in_use(context.work.path)
    base = _base(context)
    if context.mirror:
        context.mirror.pull(*map(base.work.join, _READ))
    _check_base(base)
    if "dev" not in split_files(base.work.log):
        raise UserError(
            f"{base.work.log}: expected dev.parquet, rows held back that score an update; train a "
            "first model with some (--gin.ingest.dev_share=0.1)"
        )


def _base(context: Context) -> Context:
    """The context of the version in use."""
    served = WorkDir(workdir.published(context.work.path))
    return dataclasses.replace(context, work=served, home=served)


def _fingerprint(context: Context) -> str:
    files = context.work.expand(context.log)
    return fingerprint({name: context.work.fingerprint(path) for name, path in files.items()})


def _check_base(base: Context) -> None:
    """Raises UserError if there is no initial model, or if it does not write queries."""
    stage = trained.stage_in_use(base.work)
    stored = trained.description(Parts(base.work), stage)
    if not any(task.endswith("_query") for task in stored["tasks"]):
        raise UserError(
            f"{base.work.join(stage)} writes semantic ids, which an update may move; update models "
            "that write queries, or train this one again with `run`"
        )


def _check_unchanged(stage: str, served: str, new: str) -> None:
    """Raises UserError if the stage ran with other settings than the version in use, where a change
    would reveal private queries (`mine.min_users`) or change the model's inputs (FeatureSpec).
    """
    if stage not in _FIXED:
        return
    folder, prefix = _FIXED[stage]
    manifests = [Manifest.read(os.path.join(home, folder)) for home in (served, new)]
    before, after = (made.settings if made else {} for made in manifests)
    for name in sorted(before.keys() & after.keys()):
        if name.startswith(prefix) and before[name] != after[name]:
            raise UserError(
                f"update would run {stage} with {name} = {after[name]!r}, and {served} was made "
                f"with {before[name]!r}; give update the gin files and flags that made it"
            )


def _prepare(new: str, base: Context, record: Mapping) -> None:
    """Makes the folder of the next version: unchanged parts and M_t, as `pretrain`, are linked."""
    begun = versions.record(new) or {}
    if {name: begun.get(name) for name in record} == record:
        return  # continue the interrupted update
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    for folder in _UNCHANGED:
        link_tree(base.work.join(folder), os.path.join(new, folder))
    stage = trained.stage_in_use(base.work)
    model, pretrain = base.work.join(stage), os.path.join(new, "pretrain")
    for name in (trained.MODEL_FILE, workdir.MANIFEST):
        link_file(os.path.join(model, name), os.path.join(pretrain, name))
    parameters = trained.parameters(model)
    link_tree(os.path.join(model, parameters), os.path.join(pretrain, parameters))
    write_json(os.path.join(new, versions.RECORD), dict(record))


def _forgotten(context: Context) -> Forgotten | None:
    """The users whom the service's store has deleted."""
    from onesug_jax.serve import forgotten
    from onesug_jax.stages.serving import store_path

    return forgotten.read(store_path(context))


def _judge(
    context: Context,
    base: Context,
    new: str,
    version: str,
    record: Mapping,
    tolerance: float,
    rows: int,
) -> int | None:
    """Scores both models on the held-out rows, and finishes the new version if it is not worse.

    Both see the same requests with the same tables: M_t is the model that M_t+1 was aligned from.
    """
    next_work = WorkDir(new)
    judge = os.path.join(next_work.log, "test.parquet")
    bundled = WorkDir(workdir.model_in_use(new))
    model = TrainedModel(dataclasses.replace(context, work=bundled, home=next_work), "rwr")
    scores = score(model, judge, next_work.log, rivals=SFT, sample=rows).metrics
    values = {"M_t": judged(scores[SFT]), "M_t+1": judged(scores["model"])}
    for name, metrics in values.items():
        print(f"  {name:<6}" + "".join(f"  {key} {value:6.2f}" for key, value in metrics.items()))
    not_worse = values["M_t+1"]["value"] >= values["M_t"]["value"] - tolerance
    fresh = split_files(os.path.join(new, "fresh")).values()
    news = entered.entered(base.work, next_work, list(fresh))
    entered.show(news)
    write_json(os.path.join(new, versions.RECORD), {**record, "scores": values, "entered": news})
    shutil.rmtree(os.path.join(new, "fresh"))  # `log` has its rows, except those of deleted users
    folder = new.removesuffix(workdir.NEW)
    if not not_worse:
        os.replace(new, folder + ".refused")
        print(
            f"version {version} is worse than what it would replace by "
            f"{values['M_t']['value'] - values['M_t+1']['value']:.2f} points of value (allowed: "
            f"update.tolerance = {tolerance:g}); {os.path.basename(base.work.path)} stays in use, "
            f"and the new one remains in {folder}.refused. The next update has its fresh rows only "
            "if LOG names them again, for example in a folder with both logs"
        )
        return NOT_BETTER
    os.replace(new, folder)
    return None


def _publish_finished(context: Context, retained: int) -> None:
    """Publishes finished versions: the one just made, or one whose update was killed before that;
    removes old ones.
    """
    home, mirror = context.work.path, context.mirror
    for version in versions.unpublished(home):
        if mirror:
            place = os.path.join(home, "versions", version)
            mirror.publish(place, place)
        versions.publish(home, version)
        if mirror:
            mirror.push_loose()
        print(f"version {version} is now in use; `update --rollback` goes back")
    for version in versions.prune(home, retained):
        if mirror:
            mirror.remove(os.path.join(home, "versions", version))
        print(f"version {version} was removed (update.versions_retained = {retained})")
