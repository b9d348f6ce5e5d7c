"""The loop M_t -> M_{t+1}: fresh feedback in, the next model out, if it is not worse (section 4).

Every version is a work directory of its own, WORK_DIR/versions/0001, 0002, ...; WORK_DIR itself is
version 0000. An update fills `<next>.new` by the ordinary stages: fresh rows joined to those of the
last days, mined again; encoder, vocabulary and codebooks unchanged; preferences of the newest days
learnt from M_t. Then M_t as it is served and M_{t+1} write lists for the `dev` rows of M_t's log,
which were held back from it and are held back from M_{t+1}: no fresh row decides.
The newest fresh rows are held back for the next update. `versions.publish` then names M_{t+1} in
one move. An update that is killed at any moment leaves M_t in use, and the same command continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import (
    atomic_path,
    fingerprint,
    link_file,
    link_tree,
    write_json,
)
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline import remote_log, versions, workdir
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir
from onesug_jax.stages import entered, opened, trained
from onesug_jax.stages.spent import Spent

if TYPE_CHECKING:
    from onesug_jax.serve.forgotten import Forgotten

NOT_BETTER = 3  # exit code of an update that leaves M_t in use
_UNCHANGED = ("encoder", "vocab")  # folders that an update takes over as they are
_READ = (*_UNCHANGED, "log", "mined", "semantic_ids", "index", "examples/asof", "pretrain", "rwr")
_STAGES = ("mine", "quantize", "index", "examples", "rewards", "rwr")
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
    judge_rows: int = 2000,
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
    home, spent = context.work.path, Spent()
    if context.options.rollback:
        gone, back = versions.rollback(home)
        if context.mirror:
            context.mirror.push_loose()
        print(f"version {gone} is no longer in use; version {back} is")
        return None
    remote_log.copy(context.macros["LOG"])
    opened.cache_compiled(context)  # in WORK_DIR, not in the version's folder
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
    if not opened.splits(os.path.join(new, "fresh")):
        context.configured("ingest")(
            log=context.log,
            out=os.path.join(new, "fresh"),
            dev_days=0.0,
            test_days=0.0,
            clicks=context.configured("clicks")(),
        )
    spent.lap("ingest")
    rows = _join(base, new, window_days, holdout, _forgotten(context))
    print(
        f"version {version}: {rows['fresh']:,} fresh rows, the newest {rows['held']:,} held back "
        f"for the next; {rows['again']:,} earlier ones reported again; {rows['train']:,} rows of "
        f"{window_days:g} days mined; {rows['judged']:,} that were held back before score it",
        flush=True,
    )
    spent.lap("join")
    days = min(align_days, _days_of(new, max(2 * rows["learnt"], _LEAST_LISTS)))
    changes = {
        "encode.vectors_from": served,
        "quantize.quantiser_from": os.path.join(served, "semantic_ids"),
        "rwr.steps": min(steps, -(-rows["learnt"] // rows_a_step)),
        "rwr.evaluate_every": 0,  # the held-out rows judge, so they must not choose
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
    if "dev" not in opened.splits(base.work.log):
        raise UserError(
            f"{base.work.log}: expected dev.parquet, rows held back that score an update; train a "
            "first model with some (--gin.ingest.dev_days=2)"
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
    stage = trained.model_stage(base)
    stored = trained.model_description(base, stage)
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
    before, after = (
        _bound(os.path.join(home, folder, workdir.CONFIG), begins) for home in (served, new)
    )
    for name in sorted(before.keys() & after.keys()):  # a later release may have more names
        if before[name] != after[name]:
            raise UserError(
                f"update would run {stage} with {name} = {after[name]}, and {served} was made with "
                f"{before[name]}; give update the gin files and flags that made it"
            )


def _bound(path: str, begins: str) -> dict[str, str]:
    """Names that begin so and their values, as the operative configuration at `path` has them."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        pairs = (line.rstrip("\n").partition(" = ") for line in file)
        return {name: value for name, _, value in pairs if name.startswith(begins)}


def _prepare(new: str, base: Context, wanted: Mapping) -> None:
    """The folder of the next version: unchanged parts are linked, M_t becomes its `pretrain`."""
    record = versions.record(new) or {}
    if {name: record.get(name) for name in wanted} == wanted:
        return  # interrupted: goes on
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    for folder in _UNCHANGED:
        link_tree(base.work.join(folder), os.path.join(new, folder))
    stage = trained.model_stage(base)
    model, there = base.work.join(stage), os.path.join(new, "pretrain")
    for name in (trained.MODEL_FILE, workdir.MANIFEST):
        link_file(os.path.join(model, name), os.path.join(there, name))
    parameters = os.path.basename(trained.parameters(base, stage))
    link_tree(os.path.join(model, parameters), os.path.join(there, parameters))
    write_json(os.path.join(new, versions.RECORD), dict(wanted))


def _forgotten(context: Context) -> Forgotten | None:
    """Whom the service's store wants left out."""
    from onesug_jax.serve import feedback, forgotten

    path = context.configured("FeedbackConfig")().path
    home = workdir.local(context.macros["WORK_DIR"])
    return forgotten.read(path or os.path.join(home, feedback.FOLDER, feedback.FILE))


def _join(
    base: Context,
    new: str,
    window_days: float,
    holdout: float,
    forgotten: Forgotten | None = None,
) -> dict[str, int]:
    """new/log: train (old rows of the window, and the fresh ones), dev (the newest fresh ones) and
    test, which judges: the dev rows of the version in use, as they were.

    A request that both hold counts once, as the fresh log has it: an order may come days after
    its search. Columns are those of the old rows; what the fresh ones lack of them is empty there.
    Histories that only one of the two brings stay. Rows of users who asked to be deleted since
    are in neither.
    """
    from onesug_jax.logs.database import connect, quoted
    from onesug_jax.logs.database import files as in_sql
    from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES

    log = os.path.join(new, "log")
    made = Manifest.read(log)
    os.makedirs(log, exist_ok=True)
    fresh = list(opened.splits(os.path.join(new, "fresh")).values())
    there = opened.splits(base.work.log)
    old = list(there.values())
    with connect(new, base.settings["ingest.memory_limit"]) as database:

        def one(query: str):
            return database.sql(query).fetchall()[0][0]

        without = ""
        if forgotten is not None:
            database.sql("CREATE TABLE forgotten (person VARCHAR, at_ms BIGINT)")
            database.executemany("INSERT INTO forgotten VALUES (?, ?)", forgotten.people)
            person = f"sha256({quoted(forgotten.salt)} || user_id)"
            without = f" ANTI JOIN forgotten ON person = {person} AND timestamp_ms <= at_ms"
        database.sql(
            f"CREATE VIEW present AS SELECT * FROM read_parquet({in_sql(old)}, union_by_name=true)"
            f"{without}; "
            f"CREATE VIEW reported AS SELECT * FROM read_parquet({in_sql(fresh)}){without}; "
            f"CREATE VIEW held AS SELECT request_id FROM read_parquet({in_sql([there['dev']])}); "
            "CREATE VIEW judge AS FROM present SEMI JOIN held USING (request_id); "
            "CREATE VIEW old AS FROM present ANTI JOIN reported USING (request_id) "
            "ANTI JOIN held USING (request_id); "
            "CREATE VIEW again AS FROM reported SEMI JOIN present USING (request_id) "
            "ANTI JOIN held USING (request_id); "
            "CREATE VIEW fresh AS FROM reported ANTI JOIN present USING (request_id)"
        )
        count = one("SELECT count(*) FROM fresh")
        if count < 2:
            raise UserError(
                f"{base.log}: {count} rows that the current version does not hold yet; an update "
                "needs some for training and some for evaluation"
            )
        cut = one(f"SELECT quantile_disc(timestamp_ms, {1 - holdout}) FROM fresh")
        start = one("SELECT max(timestamp_ms) FROM fresh") - int(window_days * DAY_MS)
        columns = {view: database.sql(f"FROM {view} LIMIT 0").columns for view in ("old", "fresh")}
        either = (*columns["old"], *columns["fresh"])
        brought = [name for name in (HISTORY, HISTORY_MINUTES) if name in either]
        wanted = list(dict.fromkeys((*columns["old"], *brought)))
        for name in wanted:
            if name not in (*columns["fresh"], *brought):
                print(f"update: {base.log} has no column {name!r}: its rows count without a value")
        of = {
            view: ", ".join(_column(name, have, name in brought) for name in wanted)
            for view, have in columns.items()
        }
        again = one("SELECT count(*) FROM again")
        parts = {
            "train": f"SELECT {of['old']} FROM old WHERE timestamp_ms >= {start} UNION ALL "
            f"SELECT {of['fresh']} FROM again WHERE timestamp_ms >= {start} UNION ALL "
            f"SELECT {of['fresh']} FROM fresh WHERE timestamp_ms <= {cut}",
            "dev": f"SELECT {of['fresh']} FROM fresh WHERE timestamp_ms > {cut}",
            "test": f"SELECT {of['old']} FROM judge",
        }
        for split, query in parts.items():
            path = os.path.join(log, f"{split}.parquet")
            if made is None:
                with atomic_path(path) as part:
                    database.sql(
                        f"COPY ({query} ORDER BY timestamp_ms, request_id) "
                        f"TO {quoted(part)} (FORMAT parquet)"
                    )
        counts = {
            name: one(f"SELECT count(*) FROM read_parquet({in_sql([f'{log}/{split}.parquet'])})")
            for name, split in (("train", "train"), ("held", "dev"), ("judged", "test"))
        }
    if made is None:
        Manifest("update", 1, {}, {}).write(log, finished=True)
    if not counts["held"]:
        raise UserError(
            f"{base.log}: all fresh rows carry one time, so none can be held out as the newest"
        )
    return {"fresh": count, "again": again, "learnt": count + again - counts["held"], **counts}


def _days_of(new: str, rows: int) -> float:
    """How many days the newest so many rows of train go back."""
    import pyarrow.parquet as pq

    path = os.path.join(new, "log", "train.parquet")
    times = pq.read_table(path, columns=["timestamp_ms"])["timestamp_ms"].to_numpy()
    return float(times[-1] - times[-min(rows, len(times))] + 1) / DAY_MS


def _column(name: str, have: Sequence[str], brought: bool) -> str:
    """A column of a view that may lack it, in SQL."""
    if name in have:
        return f'"{name}"'
    return f'NULL AS "{name}"' if brought else f"'' AS \"{name}\""


def _judge(
    context: Context,
    base: Context,
    new: str,
    version: str,
    wanted: Mapping,
    tolerance: float,
    rows: int,
) -> int | None:
    """Scores both models on the rows held back before, and names the new one if it is not worse."""
    from onesug_jax.stages.lists import judged, score

    there = WorkDir(new)
    judge = os.path.join(there.log, "test.parquet")
    values = {}
    for name, work in (("M_t", base.work), ("M_t+1", there)):
        model = WorkDir(workdir.model_in_use(work.path))
        scored = dataclasses.replace(context, work=model, home=there)
        scores = score(scored, judge, there.log, rivals=False, sample=rows)
        values[name] = judged(scores.metrics["model"])
    for name, found in values.items():
        print(f"  {name:<6}" + "".join(f"  {key} {value:6.2f}" for key, value in found.items()))
    better = values["M_t+1"]["value"] >= values["M_t"]["value"] - tolerance
    fresh = opened.splits(os.path.join(new, "fresh")).values()
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
