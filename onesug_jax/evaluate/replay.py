"""Replay of a split through time: every request sees the as-of state of its own moment.

In time order, the features of each request are computed first; then the request updates the state.
Counts, histories and the set of queries therefore grow as in a service. Features are computed at
the request's own moment, so requests can be answered in batches of any size.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.evaluate.rows import Suggester, columns_of, rows_schema, score_block
from onesug_jax.logs import schema
from onesug_jax.logs.asof.config import AsOfConfig, duration_ms
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import ask, observe, read_events
from onesug_jax.progress import Progress
from onesug_jax.tasks.features import Request

_NEEDED = ("request_id", "prefix", "query", "clicked_items", "ordered_items", "timestamp_ms")


def settings_at(config: AsOfConfig, freshness: str | float | None) -> tuple[AsOfConfig, bool]:
    """The settings for a freshness such as "1m", "1d" or "inf" (None: that of `config`), and
    whether the state is frozen.

    A frozen state is that of a model without updates: it has the rows before the split only.

    Raises:
      UserError: `freshness` is not a duration.
    """
    delay = config.freshness_ms if freshness is None else duration_ms(freshness)
    frozen = math.isinf(delay)
    return config if frozen else dataclasses.replace(config, freshness_ms=delay), frozen


def plain_requests(state: AsOf, rows: Sequence[dict], items: Sequence[Items]) -> list[Request]:
    """Requests with only the features of the as-of state."""
    requests = []
    for row, item in zip(rows, items, strict=True):
        past = [state.text(int(number) - 1) for number in item.history if number]
        requests.append(Request(row["prefix"], tuple(past), (), tuple(row["profile"]), items=item))
    return requests


def replay(
    state: AsOf,
    files: Sequence[str],
    split: str,
    suggesters: Mapping[str, Suggester],
    *,
    first: Sequence[int] | None = None,
    frozen: bool = False,
    make: Callable[[AsOf, Sequence[dict], Sequence[Items]], list[Request]] = plain_requests,
    listed: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    prefix_counts: Mapping[str, int] | None = None,
    k: int = 16,
    block: int = 1024,
    visible: Callable[[str], bool] = bool,
    process: tuple[int, int] = (0, 1),
    sample: int | None = None,
    progress: bool = True,
) -> pa.Table:
    """Runs every suggester on every row of a split, in time order.

    Args:
      state: the as-of state before the first rows; all rows update it.
      files: the log files, with all rows before and during the split.
      split: the scored one of `files`.
      suggesters: name -> function from up to `block` requests to their lists, best first.
      first: the first row of each file that `state` has not observed; None: 0.
      frozen: rows of the split do not become visible; only histories go on.
      make: rows and their as-of items -> inputs of the suggesters.
      listed: further rivals by name, as request_id -> list, such as the oracle of a simulated log.
        The lists NAME_order replace those of NAME for requests with an order.
      prefix_counts: occurrences of each prefix in train.
      k: lists are truncated to k.
      block: number of requests in a batch.
      visible, process: as in `evaluator.score_rows`.
      sample: score about so many rows, evenly spaced; None: all, as is required with several
        processes, whose parts are merged.
      progress: whether progress is printed.

    Returns:
      the rows in the split's order, with the columns of `evaluator.score_rows`, timestamp_ms, new
      (whether the query did not exist as of the request) and candidate (whether it is among the
      candidates).

    Raises:
      UserError: a file cannot be read, the split has no row, or a list of `listed` is missing.
      ValueError: as in `evaluator.score_rows`.
    """
    names = [os.path.abspath(path) for path in files]
    if os.path.abspath(split) not in names:
        raise UserError(f"replay of {split!r}: expected one of the log files {list(files)}.")
    scored = names.index(os.path.abspath(split))
    rows = _rows(split)
    events = read_events(files, first=first)
    listed = dict(listed or {})
    parts: list[pa.RecordBatch] = []
    waiting: list[tuple[dict, Items, bool, bool]] = []
    count = 0
    stride = 1 if sample is None else max(1, -(-len(rows) // sample))
    meter = Progress("evaluate", unit="requests", quiet=not progress)

    def score_waiting() -> None:
        batch, items, new, candidate = (list(column) for column in zip(*waiting, strict=True))
        requests = make(state, batch, items)
        rivals = {name: _looked_up(name, lists, batch) for name, lists in listed.items()}
        histories = [request.history for request in requests]
        numbers = [row["row"] for row in batch]
        columns = columns_of(numbers, batch, histories, prefix_counts or {}, visible)
        columns |= {"timestamp_ms": [row["timestamp_ms"] for row in batch]}
        columns |= {"new": new, "candidate": candidate}
        parts.append(score_block(columns, batch, requests, {**suggesters, **rivals}, k))
        meter.add(len(batch))
        waiting.clear()

    for event in events:
        if count == len(rows):
            break
        if event.file == scored:
            if frozen and not count:
                state.freeze(event.time_ms)
            index, skipped = divmod(count, stride)
            if not skipped and index // block % process[1] == process[0]:
                row = {**rows[event.row], "row": event.row}
                items, number = ask(state, event), state.number(event.query)
                candidate = items.target(number) > 0
                waiting.append((row, items, not state.exists(number), candidate))
            count += 1
            if len(waiting) == block:
                score_waiting()
        observe(state, event)
    if waiting:
        score_waiting()
    if not count:
        raise UserError(f"{split}: expected at least one row to score, found none; score another")
    meter.close()
    table_schema = rows_schema([*suggesters, *listed], replayed=True)
    return pa.Table.from_batches(parts, table_schema).sort_by("row")


def _rows(split: str) -> list[dict]:
    """The rows of the split as dicts, with their profile values."""
    profile = schema.profile_columns(pq.read_schema(split))
    table = pq.read_table(split, columns=[*_NEEDED, *profile])
    rows = table.to_pylist()
    for row in rows:
        row["profile"] = [row[name] or "" for name in profile]
    return rows


def _looked_up(name: str, lists: Mapping[str, Sequence[str]], rows: Sequence[dict]) -> Suggester:
    """A suggester that returns the precomputed lists of `rows`."""
    missing = [row["request_id"] for row in rows if row["request_id"] not in lists]
    if missing:
        raise UserError(
            f"{name}: expected a list for every request of the split, found none for "
            f"{missing[0]!r}; compute the lists of this split"
        )
    return lambda requests: [lists[row["request_id"]] for row in rows]
