"""The stages of the service: answering requests, and exporting its feedback."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import os
import time
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError, plain
from onesug_jax.files import mode_of
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline import bundle, versions, workdir
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import read_result, split_files
from onesug_jax.stages.trained_model import TrainedModel

if TYPE_CHECKING:
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.pipeline.mirror import Mirror
    from onesug_jax.serve.config import EngineConfig
    from onesug_jax.serve.feedback import FeedbackStore

_LOOK_SECONDS = 30.0  # between checks of a bucket for another model


def serve(context: Context) -> None:
    """Answers HTTP requests with the model in use of WORK_DIR."""
    from onesug_jax.decode.replicas import Replicas
    from onesug_jax.serve.engine import Engine
    from onesug_jax.serve.server import serve as listen

    config = context.configured("ServerConfig")()
    engine_config = context.configured("EngineConfig")().over(len(Replicas()))
    say = functools.partial(print, flush=True)
    store = _store_or_none(context, say)
    load = functools.partial(_version, context, engine_config, store, say)
    home = workdir.local(context.macros["WORK_DIR"])
    if context.mirror and not context.configured("FeedbackConfig")().path:
        say(f"serve: the feedback store lies on this machine: {store_path(context)}")
    engine = Engine(lambda: _model_key(home, context.mirror), load, engine_config, say=say)
    listen(engine, store, config, say)


def check_serve(context: Context) -> None:
    """Raises UserError if the service may not listen with these settings."""
    context.configured("ServerConfig")().key()


def _model_key(home: str, mirror: Mirror | None = None) -> str:
    """The path and the time of the bundle in use, which differ after each training. A bundle in a
    bucket is downloaded.
    """
    if mirror:
        mirror.refresh(after=_LOOK_SECONDS)
        mirror.pull(workdir.model_in_use(home))
    path = workdir.model_in_use(home)
    return f"{path}?{os.stat(path).st_mtime_ns}"


def _version(context: Context, config: EngineConfig, store: FeedbackStore, say, key: str):
    """Opens the model of one bundle; `key` is from `_model_key`."""
    path = key.rpartition("?")[0]
    model = TrainedModel(dataclasses.replace(context, work=workdir.WorkDir(path)))
    name = versions.in_use(workdir.local(context.macros["WORK_DIR"]))
    settings = dict(
        profile=_profile(context) if model.spec.profile else (),
        blocked=model.rules.blocked,
        least_count=model.rules.least_count,
    )
    if model.spec.items:
        return _item_version(model, config, store, say, name, key, settings)
    return _text_version(model, name, key, settings)


def _item_version(model: TrainedModel, config, store, say, name: str, key: str, settings: dict):
    from onesug_jax.serve.item_version import ItemVersion
    from onesug_jax.serve.live import LiveCounts

    state = model.after_log()
    tables = model.tables_of(state)
    since = state.latest_ms
    age = _made_ms(model.work.path) - since
    stale = age > config.stale_days * DAY_MS
    if stale:
        state.postpone(age)
        say(
            f"serve: the log ended {age / DAY_MS:,.0f} days before the model was made; its "
            "counts are taken as if it had ended then (EngineConfig.stale_days)"
        )

    def again() -> AsOf:
        reloaded = model.after_log()
        if stale:
            reloaded.postpone(age)
        return reloaded

    live = LiveCounts(state, store, since_ms=since, again=again)
    suggester = model.item_suggester(state, tables)
    return ItemVersion(name, key, suggester, live, tables, model.encode, **settings)


def _made_ms(path: str) -> int:
    """The time when the training rows of a bundle's model were made; 0: not recorded."""
    sources = read_result(os.path.join(path, bundle.SOURCES))
    made = sources.get("examples")
    return int(1000 * datetime.datetime.fromisoformat(made).timestamp()) if made else 0


def _text_version(model: TrainedModel, name: str, key: str, settings: dict):
    from onesug_jax.serve.text_version import TextVersion

    finder = model.related(model.spec)
    ids = model.ids.of if model.spec.related else None
    return TextVersion(name, key, model.text_suggester(), finder, ids=ids, **settings)


def _profile(context: Context) -> list[str]:
    """Names of the log's profile columns; [] if there is neither a log nor a report."""
    import pyarrow.parquet as pq

    from onesug_jax.logs.schema import profile_columns

    path = next(iter(split_files(context.home.log).values()), None)
    if path:
        return profile_columns(pq.read_schema(path))
    report = os.path.join(context.home.log, "report.json")
    return read_result(report)["profile"] if os.path.exists(report) else []


def _store(context: Context, *, prune: bool = True) -> FeedbackStore:
    from onesug_jax.serve import feedback

    config = context.configured("FeedbackConfig")()
    if not prune:
        config = dataclasses.replace(config, keep_days=None)
    return feedback.FeedbackStore(store_path(context), config)


def store_path(context: Context) -> str:
    """The path of a WORK_DIR's feedback store."""
    from onesug_jax.serve import feedback

    config = context.configured("FeedbackConfig")()
    home = workdir.local(context.macros["WORK_DIR"])
    return config.path or os.path.join(home, feedback.FOLDER, feedback.FILE)


def _store_or_none(context: Context, say) -> FeedbackStore:
    """The store, or a substitute if it cannot be opened, because suggestions work without it."""
    try:
        return _store(context)
    except UserError as error:
        from onesug_jax.serve.absent import AbsentStore

        config = context.configured("FeedbackConfig")()
        if config.required:
            raise
        say(
            f"serve: {plain(error)}\nserve: starts without the feedback store: histories are "
            "empty, counts stay those of the log, /feedback answers 503. Repair the file and start "
            "again; FeedbackConfig.required=True would have ended the service here."
        )
        return AbsentStore(store_path(context), config, plain(error))


def export_feedback(context: Context) -> None:
    """Writes the stored feedback as a log, for `update`."""
    options = context.options
    if not options.to:
        raise UserError("export_feedback needs a file to write: --to FILE")
    if not options.to.endswith(".parquet"):
        raise UserError(f"--to {options.to}: expected a name that ends in .parquet, as is written")
    since = 0 if options.days is None else int(1000 * time.time() - options.days * DAY_MS)
    if not mode_of(store_path(context)):
        raise UserError(
            f"{store_path(context)}: expected the events that `serve` has stored, found no such "
            f"file; {options.to} is not written"
        )
    store = _store(context, prune=False)
    try:
        rows = store.export(
            options.to, profile=_profile(context), since_ms=since, untrusted=options.all
        )
        others = 0 if options.all else store.count(since_ms=since, trusted=False)
        left = f"{others:,} that are not trusted are left out (FeedbackConfig.trust); see --all"
        if not rows:
            raise UserError(
                f"{store.path}: no events to export{f', and {left}' if others else ''}; "
                f"{options.to} is not written"
            )
    finally:
        store.close()
    if others:
        print(left)
    print(
        f"{rows:,} events written to {options.to}; `update --gin.LOG={options.to}` learns of them"
    )


def export_flags(parser: argparse.ArgumentParser) -> None:
    """The file and the events to export."""
    parser.add_argument("--to", metavar="FILE", help="the Parquet file to write")
    parser.add_argument("--all", action="store_true", help="also events that are not trusted")
    parser.add_argument("--days", type=float, help="only events of the last so many days")
