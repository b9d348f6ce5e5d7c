"""The queries that a fresh log brought into the most searched lists, to review an update.

Of the most typed prefixes, queries among the ten most searched completions of the next version that
were not among those of the version in use, with their fresh searches and visitors. Forged
feedback would show here. Lists are those of the counts, which candidates and the level `popular`
come from, not the model's.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from typing import Any

from onesug_jax.pipeline.workdir import WorkDir
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.trained_model import SNAPSHOT

_PREFIXES, _TOP = 100, 10
_SHOWN = 12  # lines that are printed


def entered(before: WorkDir, after: WorkDir, fresh: Sequence[str]) -> list[dict[str, Any]]:
    """Rows `prefix`, `query`, `place` (from 1), `searches` and `visitors`, the last two of the
    fresh log; most typed prefix first, then by place.

    Args:
      before: the version in use. after: the next one.
      fresh: files of the fresh log, as `ingest` writes them.
    """
    import pyarrow.parquet as pq

    from onesug_jax.logs.mined import read_table
    from onesug_jax.logs.schema import visitors_of

    searches: collections.Counter[str] = collections.Counter()
    visitors: dict[str, set[str]] = collections.defaultdict(set)
    for path in fresh:
        names = ["user_id", "session_id", "timestamp_ms", "query"]
        table = pq.read_table(path, columns=names)
        for query, visitor in zip(table["query"].to_pylist(), visitors_of(table), strict=True):
            searches[query] += 1
            visitors[query].add(visitor)
    typed = read_table(after.mined, "prefixes").sort_by([("count", "descending")])
    old, new = _most_searched(before), _most_searched(after)
    found = []
    for prefix in typed["prefix"].to_pylist()[:_PREFIXES]:
        there = {*old(prefix)}
        for place, query in enumerate(new(prefix), 1):
            if query not in there and searches[query]:
                counted = {"searches": searches[query], "visitors": len(visitors[query])}
                found.append({"prefix": prefix, "query": query, "place": place, **counted})
    return found


def _most_searched(work: WorkDir) -> Callable[[str], list[str]]:
    """Prefix -> the most searched completions at the end of a version's log."""
    from onesug_jax.logs.asof import snapshot

    folder = os.path.join(work.examples, SNAPSHOT)
    if not os.path.isdir(folder):  # a model of text
        index = Parts(work).completions
        return lambda prefix: index.complete(prefix, _TOP)
    state = snapshot.load(folder)
    state.settle()
    return lambda prefix: [state.text(int(n)) for n in state.complete(prefix, _TOP)]


def show(found: Sequence[dict[str, Any]]) -> None:
    """Prints the first of what `entered` gave."""
    print(
        f"  {len(found)} queries are new in the most searched completions of the {_PREFIXES} most "
        "typed prefixes (update.json has all)"
    )
    for one in found[:_SHOWN]:
        print(
            f"    {one['prefix']!r} {one['place']}. {one['query']!r}: {one['searches']:,} fresh "
            f"searches of {one['visitors']:,} visitors"
        )
