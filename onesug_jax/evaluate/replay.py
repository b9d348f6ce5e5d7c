"""A split replayed through time: every request sees what was visible at its moment.

Requests are asked in time order and observed afterwards, so counts, histories and the queries that
exist grow as they would in a service. A suggester's input is made at the request's own
moment, so requests may be answered in batches of any size.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.evaluate.rows import (
    Suggester,
    columns_of,
    rows_schema,
    score_block,
)
from onesug_jax.logs import schema
from onesug_jax.logs.asof.config import AsOfConfig, duration_ms
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import ask, observe, read_events
from onesug_jax.progress import Progress
from onesug_jax.tasks.features import Request

_NEEDED = ("request_id", "prefix", "query", "clicked_items", "ordered_items", "timestamp_ms")


def settings_at(config: AsOfConfig, freshness: str | float | None) -> tuple[AsOfConfig, bool]:
    """The settings for a freshness such as "1m", "1d" or "inf", and whether the state is frozen;
    None: that of `config`.

    Frozen is the state of a model that is never updated: all before the split and nothing after.

    Raises:
      UserError: `freshness` is not a duration.
    """
    delay = config.freshness_ms if freshness is None else duration_ms(freshness)
    frozen = math.isinf(delay)
    return config if frozen else dataclasses.replace(config, freshness_ms=delay), frozen


def plain_requests(state: AsOf, rows: Sequence[dict], items: Sequence[Items]) -> list[Request]:
    """Requests with the as-of state's features alone."""
    found = []
    for row, one in zip(rows, items, strict=True):
        past = [state.text(int(number) - 1) for number in one.history if number]
        found.append(Request(row["prefix"], tuple(past), (), tuple(row["profile"]), items=one))
    return found


def replay(
    state: AsOf,
    files: Sequence[str],
    split: str,
    suggesters: Mapping[str, Suggester],
    *,
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
    """Ask every suggester about every row of a split, in time order.

    Args:
      state: the as-of state before the first row of `files`; it observes them all.
      files: of the log, with all that happened before and during the split.
      split: the one of them that is scored.
      suggesters: name -> function of up to `block` requests to as many lists, best first.
      frozen: nothing from the split's first row on becomes visible; histories go on.
      make: rows and their as-of items -> requests as the suggesters read them.
      listed: further rivals by name, as request_id -> list; an oracle of a simulated log. Its
        lists NAME_order are those that count of NAME where a request ended in an order.
      prefix_counts: how often each prefix was typed in train.
      k: lists are cut to their first k.
      block: requests that are answered at a time.
      visible: whether an earlier query may stand in the table as text: not one that few searched.
      process: (number, how many): of several processes, each answers every so manieth block.
      sample: about so many rows are asked about, evenly spread; None: all, as several processes
        must, whose parts are merged.
      progress: whether progress is printed.

    Returns:
      the rows in the split's order, with the columns of `evaluator.score_rows`, and besides
      timestamp_ms and new (whether the query did not exist as of the request).

    Raises:
      UserError: a file cannot be read, the split has no row, or a list of `listed` is missing.
      ValueError: as `evaluator.score_rows`.
    """
    names = [os.path.abspath(path) for path in files]
    if os.path.abspath(split) not in names:
        raise UserError(f"replay of {split!r}: expected one of the log files {list(files)}.")
    scored = names.index(os.path.abspath(split))
    rows = _rows(split)
    events = read_events(files)
    listed = dict(listed or {})
    parts: list[pa.RecordBatch] = []
    waiting: list[tuple[dict, Items, bool]] = []
    asked = 0
    stride = 1 if sample is None else max(1, -(-len(rows) // sample))
    meter = Progress("evaluate", unit="requests", quiet=not progress)

    def answer() -> None:
        found, items, new = (list(column) for column in zip(*waiting, strict=True))
        requests = make(state, found, items)
        both = {**suggesters, **{name: _looked_up(name, listed[name], found) for name in listed}}
        histories = [request.history for request in requests]
        numbers = [row["row"] for row in found]
        columns = columns_of(numbers, found, histories, prefix_counts or {}, visible)
        columns |= {"timestamp_ms": [row["timestamp_ms"] for row in found], "new": new}
        parts.append(score_block(columns, found, requests, both, k))
        meter.add(len(found))
        waiting.clear()

    for event in events:
        if asked == len(rows):
            break
        if event.file == scored:
            if frozen and not asked:
                state.freeze(event.time_ms)
            place, passed_over = divmod(asked, stride)
            if not passed_over and place // block % process[1] == process[0]:
                row = {**rows[event.row], "row": event.row}
                items = ask(state, event)
                waiting.append((row, items, not state.exists(state.number(event.query))))
            asked += 1
            if len(waiting) == block:
                answer()
        observe(state, event)
    if waiting:
        answer()
    if not asked:
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
    """A suggester that gives each row the list made for it."""
    missing = [row["request_id"] for row in rows if row["request_id"] not in lists]
    if missing:
        raise UserError(
            f"{name}: expected a list for every request of the split, found none for "
            f"{missing[0]!r}; make the lists of this split"
        )
    return lambda requests: [lists[row["request_id"]] for row in rows]
