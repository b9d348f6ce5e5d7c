"""The queries that a fresh log brought into the most searched lists, to review an update.

For the most typed prefixes: queries that are among the ten most searched completions in the next
version but not in the version in use, with their fresh searches and visitors. Forged feedback would
show here. These lists come from the counts, like the candidates and the level `popular`, and not
from the model.
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
      before: the version in use.
      after: the next version.
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
    rows = []
    for prefix in typed["prefix"].to_pylist()[:_PREFIXES]:
        listed = {*old(prefix)}
        for place, query in enumerate(new(prefix), 1):
            if query not in listed and searches[query]:
                counts = {"searches": searches[query], "visitors": len(visitors[query])}
                rows.append({"prefix": prefix, "query": query, "place": place, **counts})
    return rows


def _most_searched(work: WorkDir) -> Callable[[str], list[str]]:
    """Prefix -> the most searched completions at the end of a version's log."""
    from onesug_jax.logs.asof import snapshot

    folder = os.path.join(work.examples, SNAPSHOT)
    if not os.path.isdir(folder):  # a text model
        index = Parts(work).completions
        return lambda prefix: index.complete(prefix, _TOP)
    state = snapshot.load(folder)
    state.settle()
    return lambda prefix: [state.text(int(n)) for n in state.complete(prefix, _TOP)]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the first rows of `entered`."""
    print(
        f"  {len(rows)} queries are new in the most searched completions of the {_PREFIXES} most "
        "typed prefixes (update.json has all)"
    )
    for row in rows[:_SHOWN]:
        print(
            f"    {row['prefix']!r} {row['place']}. {row['query']!r}: {row['searches']:,} fresh "
            f"searches of {row['visitors']:,} visitors"
        )
