"""Stages on the log itself: a simulated one, its clean form, and what is mined from it."""

from __future__ import annotations

import os

from onesug_jax.pipeline.spec import Context


def simulate(context: Context) -> None:
    """A simulated shop's log into WORK_DIR/simulated."""
    timeline = context.configured("Timeline")()
    context.configured("simulate")(out=context.work.simulated, timeline=timeline)


def ingest(context: Context) -> None:
    """The log into WORK_DIR/log, in the schema, split and normalised."""
    context.configured("ingest")(log=context.log, out=context.work.log)


def mine(context: Context) -> None:
    """What is searched, typed and searched together, into WORK_DIR/mined."""
    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.logs.mined import read_table

    work = context.work
    context.configured("mine")(os.path.join(work.log, "train.parquet"), work.mined)
    known = read_table(work.mined, "queries")
    index = CompletionIndex.from_counts(
        known.column("query").to_pylist(), known.column("count").to_pylist()
    )
    index.save(work.mined)
    print(f"{len(index):,} queries, searched {int(index.counts.sum()):,} times")
