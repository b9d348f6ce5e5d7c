"""The stages of a running service: listening, and handing on what people did."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time

from onesug_jax.errors import UserError
from onesug_jax.pipeline import versions, workdir
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages import opened

_DAY_MS = 86_400_000


def serve(context: Context) -> None:
    """Listens for requests and answers them with the model of WORK_DIR that is in use."""
    from onesug_jax.serve.engine import Engine
    from onesug_jax.serve.server import serve as listen

    config = context.configured("ServerConfig")()
    opened.cache_compiled(context)
    engine_config = context.configured("EngineConfig")()
    load = functools.partial(_version, context, engine_config)
    say = functools.partial(print, flush=True)
    home = os.path.abspath(context.macros["WORK_DIR"])
    engine = Engine(lambda: _model_key(home), load, engine_config, say=say)
    listen(engine, _store(context), config, say)


def check_serve(context: Context) -> None:
    """Whether the service may listen as it is configured; raises UserError where not."""
    context.configured("ServerConfig")().key()


def _model_key(home: str) -> str:
    """The bundle of the model in use, and when it was made: another one after each training."""
    path = workdir.model_in_use(home)
    return f"{path}?{os.stat(path).st_mtime_ns}"


def _version(context: Context, config, key: str):
    """The model of one bundle, opened; `key` as `_model_key` gives it."""
    from onesug_jax.serve.served import Served

    path = key.rpartition("?")[0]
    context = dataclasses.replace(context, work=workdir.WorkDir(path))
    suggester = context.configured("suggester")(context)
    spec = suggester.featurizer.spec
    return Served(
        versions.in_use(os.path.abspath(context.macros["WORK_DIR"])),
        key,
        suggester,
        opened.related(context, spec, remembered=config.prefixes),
        profile=_profile(context) if spec.profile else (),
        lists=config.lists,
        blocked=context.settings["suggester.blocked"],
        least_count=context.settings["suggester.least_count"],
        ids=opened.semantic_ids(context).of if spec.related else None,
    )


def _profile(context: Context) -> list[str]:
    """Names of the log's profile columns; none where the log is not at hand."""
    import pyarrow.parquet as pq

    from onesug_jax.logs.schema import profile_columns

    path = opened.splits(context.home.log).get("train")
    return profile_columns(pq.read_schema(path)) if path else []


def _store(context: Context, *, prune: bool = True):
    from onesug_jax.serve import feedback

    config = context.configured("FeedbackConfig")()
    if not prune:
        config = dataclasses.replace(config, keep_days=None)
    home = os.path.abspath(context.macros["WORK_DIR"])
    path = config.path or os.path.join(home, feedback.FOLDER, feedback.FILE)
    return feedback.FeedbackStore(path, config)


def export_feedback(context: Context) -> None:
    """Writes what the service has kept as a log, for `update`."""
    options = context.options
    if not options.to:
        raise UserError("export_feedback needs a file to write: --to FILE")
    since = 0 if options.days is None else int(1000 * time.time() - options.days * _DAY_MS)
    store = _store(context, prune=False)
    try:
        rows = store.export(options.to, profile=_profile(context), since_ms=since)
        if not rows:
            raise UserError(f"{store.path}: no events to export; {options.to} is not written")
    finally:
        store.close()
    print(
        f"{rows:,} events written to {options.to}; `update --gin.LOG={options.to}` learns of them"
    )


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Where to, and how much."""
    parser.add_argument("--to", metavar="FILE", help="the Parquet file to write")
    parser.add_argument("--days", type=float, help="only events of the last so many days")
