"""Stages on the log: simulating one, reading one, and mining it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.pipeline import remote_log
from onesug_jax.pipeline.spec import Context


def simulate(context: Context) -> None:
    """Writes a simulated shop's log into WORK_DIR/simulated."""
    timeline = context.configured("Timeline")()
    context.configured("simulate")(out=context.work.simulated, timeline=timeline)


def ingest(context: Context) -> None:
    """Writes the log into WORK_DIR/log, in the schema, split and normalised."""
    reader(context)(log=context.log, out=context.work.log)
    remote_log.remember(context.macros["LOG"], context.work.log)


def reader(context: Context) -> Callable[..., Any]:
    """`logs.ingest.ingest` with the settings of this command."""
    return functools.partial(
        context.configured("ingest"),
        engine=context.configured("LogEngineConfig")(),
        clicks=context.configured("clicks")(),
    )


def check_simulate(context: Context) -> None:
    """Raises UserError if no log can be simulated with these sizes."""
    timeline = context.configured("Timeline")()
    context.configured("simulate")(out="", timeline=timeline, check_only=True)


def check_ingest(context: Context) -> None:
    """Checks that the log has a readable schema, and is not the folder that ingest replaces.

    Raises:
      UserError: naming the file or the setting.
    """
    log, own = os.path.realpath(context.log), os.path.realpath(context.work.join("log"))
    if os.path.commonpath([log, own]) == own:
        raise UserError(
            f"LOG = {context.log!r} is the folder that ingest writes; name the log it came from, "
            "or choose another --gin.WORK_DIR."
        )
    files = context.work.expand(context.log).values()
    # No file: the log is simulated first, or check_inputs reports it. A file that is not on this
    # machine is in a bucket and did not change.
    if files and all(map(os.path.exists, files)):
        reader(context)(log=context.log, out=own, check_only=True)


def check_engine(context: Context) -> None:
    """Raises UserError if the engine for large logs cannot be used here."""
    context.configured("LogEngineConfig")()


def mine(context: Context) -> None:
    """Mines queries, prefixes and related queries into WORK_DIR/mined."""
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.logs.mined import read_table

    work = context.work
    engine = context.configured("LogEngineConfig")()
    context.configured("mine")(os.path.join(work.log, "train.parquet"), work.mined, engine=engine)
    queries = read_table(work.mined, "queries")
    index = CompletionIndex.from_counts(
        queries.column("query").to_pylist(), queries.column("count").to_pylist()
    )
    index.save(work.mined)
    print(f"{len(index):,} queries, searched {int(index.counts.sum()):,} times")
