"""The loop M_t -> M_{t+1}: fresh feedback in, the next model out, if it is not worse (section 4).

Every version is a work directory of its own, WORK_DIR/versions/0001, 0002, ...; WORK_DIR itself is
version 0000. An update fills `<next>.new` by the ordinary stages: fresh rows joined to those of the
last days, mined again; encoder, vocabulary and codebooks unchanged; preferences of the newest days
learnt from M_t. Then both write lists for the `dev` rows of M_t's log, which were held back from it
and are held back from M_{t+1}: no fresh row decides.
The newest fresh rows are held back for the next update. `versions.publish` then names M_{t+1} in
one move. An update that is killed at any moment leaves M_t in use, and the same command continues.
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
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.scoring import SFT, judged, score
from onesug_jax.stages.spent import Spent
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.stages.update_log import join, times_of

if TYPE_CHECKING:
    from onesug_jax.serve.forgotten import Forgotten

NOT_BETTER = 3  # exit code of an update that leaves M_t in use
_UNCHANGED = ("encoder", "vocab")  # folders that an update takes over as they are
_READ = (*_UNCHANGED, "log", "mined", "semantic_ids", "index", "examples/asof", "pretrain", "rwr")
_STAGES = ("mine", "quantize", "index", "examples", "rewards", "rwr")
_NEW_SHARE = 0.25  # of the time of train, the newest: what began to exist then stays new
_LEAST_LISTS = 2000  # rows that open preference lists, where few are fresh
# What may not change from one version to the next, by stage: its folder, and how the names begin.
_FIXED = {"mine": ("mined", "mine.min_users"), "examples": ("examples", "FeatureSpec.")}


def flags(parser: argparse.ArgumentParser) -> None:
    """What to do instead of an update."""
    parser.add_argument(
        "--rollback", action="store_true", help="serve the version before the current one again"
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
    """The next version of WORK_DIR's model from a fresh log (LOG); 3 where it would be worse.

    Args:
      window_days: days of the log, back from its newest row, that are mined.
      align_days: most days of it whose rows open preference lists; fewer where twice as
        many rows as are fresh, and some thousands, are newer.
      holdout: share of the fresh rows, the newest, that are held back for the next update to judge
        by.
      steps: most preference updates.
      rows_a_step: fresh rows for each of them: what an update costs follows what is fresh.
      judge_rows: about so many of the rows held back before, evenly spread over their time, score
        both models.
      tolerance: how many points of value (mean of MRR@16 over all searches and over those with an
        order) M_{t+1} may lie below M_t and still be published.
      versions_retained: how many versions stay on the disk; the one in use and the one before it
        always do.
    """
    from onesug_jax.train.compiler import cache_programs

    home, spent = context.work.path, Spent()
    if context.options.rollback:
        gone, back = versions.rollback(home)
        if context.mirror:
            context.mirror.push_loose()
        print(f"version {gone} is no longer in use; version {back} is")
        return None
    remote_log.copy(context.macros["LOG"])
    cache_programs(context.compiled)  # in WORK_DIR, not in the version's folder
    _publish_finished(context, versions_retained)
    served = workdir.published(home)
    base = _base(context)
    fresh = _fingerprint(context)
    before = versions.holding(home, fresh)
    if before:
        print(f"{context.log} is already in version {before}; nothing to do")
        return None
    version = versions.following(home)
    new = os.path.join(home, "versions", version + workdir.NEW)
    wanted = {"version": version, "base": os.path.relpath(served, home), "log": fresh}
    _prepare(new, base, wanted)
    if not split_files(os.path.join(new, "fresh")):
        context.configured("ingest")(
            log=context.log,
            out=os.path.join(new, "fresh"),
            dev_share=0.0,
            test_share=0.0,
            clicks=context.configured("clicks")(),
        )
    spent.lap("ingest")
    rows = join(base, new, window_days, holdout, _forgotten(context))
    print(
        f"version {version}: {rows['fresh']:,} fresh rows, the newest {rows['held']:,} held back "
        f"for the next; {rows['again']:,} earlier ones reported again; {rows['train']:,} rows of "
        f"{window_days:g} days mined; {rows['judged']:,} that were held back before score it",
        flush=True,
    )
    spent.lap("join")
    times = times_of(new)
    newest = times[-max(2 * rows["learnt"], _LEAST_LISTS) :]
    days = min(align_days, float(newest[-1] - newest[0] + 1) / DAY_MS)
    changes = {
        "encode.vectors_from": served,
        "quantize.quantiser_from": os.path.join(served, "semantic_ids"),
        "rwr.steps": min(steps, -(-rows["learnt"] // rows_a_step)),
        "rwr.evaluate_every": 0,  # the held-out rows judge, so they must not choose
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
        spent.lap(stage)
    verdict = _judge(context, base, new, version, wanted, tolerance, judge_rows)
    spent.lap("judge")
    print(f"update: {spent}", flush=True)
    _publish_finished(context, versions_retained)
    return verdict


def check(context: Context) -> None:
    """Whether there is a model to start from, a fresh log, and possible settings.

    Raises:
      UserError: naming what is missing or wrong.
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
    """The context of the version in use: its folders, and its bundle's model."""
    served = WorkDir(workdir.published(context.work.path))
    return dataclasses.replace(context, work=served, home=served)


def _fingerprint(context: Context) -> str:
    files = context.work.expand(context.log)
    return fingerprint({name: context.work.fingerprint(path) for name, path in files.items()})


def _check_base(base: Context) -> None:
    """There is a model to start from, and it writes queries."""
    stage = trained.stage_in_use(base.work)
    stored = trained.description(Parts(base.work), stage)
    if not any(task.endswith("_query") for task in stored["tasks"]):
        raise UserError(
            f"{base.work.join(stage)} writes semantic ids, which an update may move; update models "
            "that write queries, or train this one again with `run`"
        )


def _check_unchanged(stage: str, served: str, new: str) -> None:
    """The stage ran with the settings of the version in use, where a change would reveal private
    queries (`mine.min_users`) or give the model other inputs than it was trained on (FeatureSpec).
    """
    if stage not in _FIXED:
        return
    folder, begins = _FIXED[stage]
    made = [Manifest.read(os.path.join(home, folder)) for home in (served, new)]
    before, after = (one.settings if one else {} for one in made)
    for name in sorted(before.keys() & after.keys()):
        if name.startswith(begins) and before[name] != after[name]:
            raise UserError(
                f"update would run {stage} with {name} = {after[name]!r}, and {served} was made "
                f"with {before[name]!r}; give update the gin files and flags that made it"
            )


def _prepare(new: str, base: Context, wanted: Mapping) -> None:
    """The folder of the next version: unchanged parts are linked, M_t becomes its `pretrain`."""
    record = versions.record(new) or {}
    if {name: record.get(name) for name in wanted} == wanted:
        return  # interrupted: goes on
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    for folder in _UNCHANGED:
        link_tree(base.work.join(folder), os.path.join(new, folder))
    stage = trained.stage_in_use(base.work)
    model, there = base.work.join(stage), os.path.join(new, "pretrain")
    for name in (trained.MODEL_FILE, workdir.MANIFEST):
        link_file(os.path.join(model, name), os.path.join(there, name))
    parameters = trained.parameters(model)
    link_tree(os.path.join(model, parameters), os.path.join(there, parameters))
    write_json(os.path.join(new, versions.RECORD), dict(wanted))


def _forgotten(context: Context) -> Forgotten | None:
    """Whom the service's store wants left out."""
    from onesug_jax.serve import forgotten
    from onesug_jax.stages.serving import store_path

    return forgotten.read(store_path(context))


def _judge(
    context: Context,
    base: Context,
    new: str,
    version: str,
    wanted: Mapping,
    tolerance: float,
    rows: int,
) -> int | None:
    """Scores both models on the rows held back before, and names the new one if it is not worse.

    Both see the same requests with the same tables: M_t is the model that M_t+1 was aligned from.
    """
    there = WorkDir(new)
    judge = os.path.join(there.log, "test.parquet")
    bundled = WorkDir(workdir.model_in_use(new))
    model = TrainedModel(dataclasses.replace(context, work=bundled, home=there), "rwr")
    scores = score(model, judge, there.log, rivals=SFT, sample=rows).metrics
    values = {"M_t": judged(scores[SFT]), "M_t+1": judged(scores["model"])}
    for name, found in values.items():
        print(f"  {name:<6}" + "".join(f"  {key} {value:6.2f}" for key, value in found.items()))
    better = values["M_t+1"]["value"] >= values["M_t"]["value"] - tolerance
    fresh = split_files(os.path.join(new, "fresh")).values()
    news = entered.entered(base.work, there, list(fresh))
    entered.show(news)
    write_json(os.path.join(new, versions.RECORD), {**wanted, "scores": values, "entered": news})
    shutil.rmtree(os.path.join(new, "fresh"))  # `log` has its rows, but those of the forgotten
    folder = new.removesuffix(workdir.NEW)
    if not better:
        os.replace(new, folder + ".refused")
        print(
            f"version {version} is worse than what it would replace by "
            f"{values['M_t']['value'] - values['M_t+1']['value']:.2f} points of value (allowed: "
            f"update.tolerance = {tolerance:g}); {os.path.basename(base.work.path)} stays in use, "
            f"and the new one remains in {folder}.refused"
        )
        return NOT_BETTER
    os.replace(new, folder)
    return None


def _publish_finished(context: Context, retained: int) -> None:
    """Puts a version in use that is finished and was never published: the one just made, or one
    whose update was killed at the very end.
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
