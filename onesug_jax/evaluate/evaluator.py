"""Scores suggesters on a split, row by row, in order, leaving out none.

`score_rows` asks every suggester for every row and returns a table: the truth, its rank in each
list, the lists. `summarise` makes metrics of that table by slice; `evaluate` does both. Several
processes each score their own blocks of rows, and `merge_parts` joins the tables in the split's
order.

What a hit is, and what a table of rows holds, is in `rows`; `replay` makes the same table of a
split in time order.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.evaluate import metrics
from onesug_jax.evaluate.rows import (
    Suggester,
    columns_of,
    ranks_of,
    rows_schema,
    score_block,
    suggesters_of,
)
from onesug_jax.logs import schema
from onesug_jax.progress import Progress
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.tasks.features import make_requests

Metric = Callable[[np.ndarray, int], float]  # of ranks int [N] and k, a share: `metrics.hr_at`
METRICS = ("hr@16", "mrr@16", "ndcg@16", "success@10", "mrr@10")  # as `evaluate` gives them

_NEEDED = (
    *("request_id", "prefix", "query", "clicked_items", "ordered_items"),
    *(schema.RECENT, schema.RECENT_MINUTES),
)


@dataclass(frozen=True)
class SliceSpec:
    """Where slices begin.

    Attributes:
      frequent: a prefix typed at least so often in train is frequent, less often rare, never:
        unseen.
    """

    frequent: int = 10


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives.

    Attributes:
      metrics: {suggester: {slice: {metric: per cent or None, "n": rows}}}; None over an empty
        slice.
      rows: one row a request of the split, in its order (columns: see `score_rows`).
      freshness: how old what a request sees of others was at least ("1m"); None: the split was not
        replayed through time.
    """

    metrics: dict[str, dict[str, dict[str, float | int | None]]]
    rows: pa.Table
    freshness: str | None = None


def prefix_counts(train_parquet: str) -> collections.Counter[str]:
    """How often each exact prefix was typed in the train split; UserError if that is missing."""
    if not os.path.isfile(train_parquet):
        raise UserError(
            f"{train_parquet}: expected the train split, found no such file; run ingest first"
        )
    counts: collections.Counter[str] = collections.Counter()
    with pq.ParquetFile(train_parquet) as file:
        for batch in file.iter_batches(columns=["prefix"]):
            for entry in batch.column(0).value_counts().to_pylist():
                counts[entry["values"]] += entry["counts"]
    return counts


def evaluate(
    batches: Iterable[pa.RecordBatch],
    suggesters: Mapping[str, Suggester],
    *,
    prefix_counts: Mapping[str, int],
    context: RelatedQueries | None = None,
    k: int = 16,
    short_k: int = 10,
    indexed: int | None = None,
    slices: SliceSpec = SliceSpec(),
    further: Sequence[Metric] = (),
    block: int = 256,
    visible: Callable[[str], bool] = bool,
    process: tuple[int, int] = (0, 1),
    exchange: Callable[[bytes], list[bytes]] = lambda own: [own],
) -> Evaluation:
    """Score every row of `batches` (a split with its histories) with every suggester.

    Args are those of `score_rows` and `summarise`; `exchange` gives every process what all of them
    gave. Raises UserError for an empty split.

    Examples:
      >>> import pyarrow as pa
      >>> from onesug_jax import evaluate_suggesters
      >>> row = {"request_id": "r1", "prefix": "la", "query": "lamp", "recent": ["tent"]}
      >>> row |= {"recent_minutes": [3.0], "clicked_items": ["i7"], "ordered_items": []}
      >>> def suggest(requests):
      ...     return [["lantern", "lamp"] for request in requests]
      >>> rows = pa.RecordBatch.from_pylist([row])
      >>> found = evaluate_suggesters([rows], {"mine": suggest}, prefix_counts={"la": 3})
      evaluate: ...
      >>> found.metrics["mine"]["all"]["mrr@16"]
      50.0
    """
    rows = score_rows(
        batches,
        suggesters,
        prefix_counts=prefix_counts,
        context=context,
        k=k,
        block=block,
        visible=visible,
        process=process,
    )
    rows = merged(rows, process, exchange)
    how: dict[str, Any] = {"k": k, "short_k": short_k, "indexed": indexed, "further": further}
    return Evaluation(summarise(rows, slices=slices, **how), rows)


def score_rows(
    batches: Iterable[pa.RecordBatch],
    suggesters: Mapping[str, Suggester],
    *,
    prefix_counts: Mapping[str, int],
    context: RelatedQueries | None = None,
    k: int = 16,
    block: int = 256,
    visible: Callable[[str], bool] = bool,
    process: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> pa.Table:
    """Ask every suggester about every row; of several processes, each takes its own blocks.

    Args:
      batches: rows of a split in order, with what `logs.history.with_history` adds.
      suggesters: name -> function of up to `block` requests to as many lists, best first, of texts
        or of suggestions with a score.
      prefix_counts: how often each prefix was typed in train.
      context: adds related queries and enhanced prefixes to the requests.
      k: lists are cut to their first k.
      visible: whether an earlier query may stand in the table as text: not one that few searched.
      process: (number, how many): of several processes, each takes every so manieth block.

    Returns:
      columns row, request_id, prefix, truth, level (name), prefix_count, history (how many), recent
      (the latest few of them, newest first), and for each suggester rank_NAME (1-based, 0 absent),
      list_NAME, scores_NAME and written_NAME (null where it gives none).

    Raises:
      UserError: a column is missing, or the split has no row.
      ValueError: a suggester gives another number of lists than requests, or a text twice in a
        list.
    """
    parts: list[pa.RecordBatch] = []
    total = 0
    meter = Progress("evaluate", unit="requests", quiet=not progress)
    for first, rows in _blocks(batches, block):
        total += len(rows)
        if (first // block) % process[1] != process[0]:
            continue
        numbers = range(first, first + len(rows))
        histories = [row[schema.RECENT] or () for row in rows]
        columns = columns_of(numbers, rows, histories, prefix_counts, visible)
        requests = make_requests(
            context,
            [row["prefix"] for row in rows],
            histories,
            [row["profile"] for row in rows],
        )
        parts.append(score_block(columns, rows, requests, suggesters, k))
        meter.add(len(rows))
    if not total:
        raise UserError(
            "evaluate: expected at least one row in the split, found none; score another log"
        )
    meter.close()
    return pa.Table.from_batches(parts, rows_schema(suggesters))


def merged(
    rows: pa.Table, process: tuple[int, int], exchange: Callable[[bytes], list[bytes]]
) -> pa.Table:
    """The rows of all processes, in the split's order, of those of each; see `evaluate`."""
    if process[1] == 1:
        return rows
    return merge_parts([pickle.loads(part) for part in exchange(pickle.dumps(rows))])


def merge_parts(parts: Sequence[pa.Table]) -> pa.Table:
    """The tables of all processes as one, in the split's order.

    Raises ValueError if a row is missing or there twice: every row of the split counts, once.
    """
    table = pa.concat_tables(parts).sort_by("row")
    if not np.array_equal(table["row"].to_numpy(), np.arange(table.num_rows)):
        raise ValueError(
            "the parts of the evaluation do not make up the whole split: rows are missing or "
            "doubled"
        )
    return table


def summarise(
    rows: pa.Table,
    *,
    k: int = 16,
    short_k: int = 10,
    indexed: int | None = None,
    slices: SliceSpec = SliceSpec(),
    further: Sequence[Metric] = (),
    plausible: Callable[[str], bool] | None = None,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Metrics in per cent of every suggester in `rows`, by slice, unrounded.

    Each slice has hr@k, mrr@k, ndcg@k, success@short_k, mrr@short_k, n, and each of the `further`
    metrics under its own name @k. "all" has besides:
    answered (share of lists that are not empty), diversity, distinct (different suggestions in
    all), and where the number of `indexed` queries is given, coverage (distinct / indexed). Where
    suggestions say whether the model wrote them: written (share of lists with a written query),
    and written_plausible (share of those queries that are `plausible`; None without any).
    """
    masks = _slices(rows, slices)
    result = {}
    for name in suggesters_of(rows):
        result[name] = {
            label: _scores(ranks_of(rows, name, orders=label == "order")[mask], k, short_k, further)
            for label, mask in masks.items()
        }
        lists = rows[f"list_{name}"].to_pylist()
        whole = result[name]["all"]
        whole["answered"] = _per_cent(metrics.answered(lists))
        whole["diversity"] = _per_cent(metrics.diversity(lists))
        whole["distinct"] = len({text for texts in lists for text in texts})
        if indexed:
            whole["coverage"] = _per_cent(metrics.coverage(lists, indexed))
        column = f"written_{name}"
        if column in rows.column_names and rows[column].null_count < rows.num_rows:
            whole |= _written(lists, rows[column].to_pylist(), plausible)
    return result


def _written(
    lists: Sequence[Sequence[str]],
    flags: Sequence[Sequence[bool] | None],
    plausible: Callable[[str], bool] | None,
) -> dict[str, float | int | None]:
    """What `summarise` says of the queries that a model wrote itself."""
    own = [
        [text for text, new in zip(texts, marks or (), strict=False) if new]
        for texts, marks in zip(lists, flags, strict=True)
    ]
    found: dict[str, float | int | None] = {"written": _per_cent(metrics.answered(own))}
    if plausible is not None:
        texts = [plausible(text) for written in own for text in written]
        found["written_plausible"] = 100.0 * sum(texts) / len(texts) if texts else None
    return found


def headline(
    rows: pa.Table, names: Sequence[str]
) -> dict[str, list[tuple[float, float, float] | None]]:
    """Suggester -> HR@16 and MRR@16 of all rows, then of those that ended in an order, in per cent:
    (mean, low, high), low to high holding the mean in 95 % of resamples; None over no row.
    """
    order = rows["level"].to_numpy(zero_copy_only=False) == "order"
    found: dict[str, list[tuple[float, float, float] | None]] = {}
    for name in names:
        found[name] = []
        for ranks in (ranks_of(rows, name), ranks_of(rows, name, orders=True)[order]):
            hits = (ranks > 0) & (ranks <= 16)
            for values in (100.0 * hits, np.where(hits, 100 / np.maximum(ranks, 1), 0.0)):
                mean = (float(values.mean()), *metrics.interval(values)) if len(values) else None
                found[name].append(mean)
    return found


def _scores(
    ranks: np.ndarray, k: int, short_k: int, further: Sequence[Metric]
) -> dict[str, float | int | None]:
    return {
        f"hr@{k}": _per_cent(metrics.hr_at(ranks, k)),
        f"mrr@{k}": _per_cent(metrics.mrr_at(ranks, k)),
        f"ndcg@{k}": _per_cent(metrics.ndcg_at(ranks, k)),
        f"success@{short_k}": _per_cent(metrics.hr_at(ranks, short_k)),
        f"mrr@{short_k}": _per_cent(metrics.mrr_at(ranks, short_k)),
        **{f"{metric.__name__}@{k}": _per_cent(metric(ranks, k)) for metric in further},
        "n": len(ranks),
    }


def _per_cent(share: float) -> float | None:
    return None if math.isnan(share) else 100.0 * share


def _slices(rows: pa.Table, spec: SliceSpec) -> dict[str, np.ndarray]:
    """Name -> bool [N], in the order of the report.

    order, item_click and click are exactly that level of the searched query: a row with an order
    is not in item_click. prefix_0 is there only if some prefix is empty, new_query (of queries that
    nobody had searched as of the request) only where the split was replayed through time.
    """
    level = rows["level"].to_numpy()
    length = np.array([len(prefix) for prefix in rows["prefix"].to_pylist()], np.int64)
    count = rows["prefix_count"].to_numpy()
    history = rows["history"].to_numpy()
    masks = {"all": np.ones(rows.num_rows, bool)}
    for name in ("order", "item_click", "click"):
        masks[name] = level == name
    if (length == 0).any():
        masks["prefix_0"] = length == 0
    for name, low, high in (("1", 1, 1), ("2_3", 2, 3), ("4_7", 4, 7), ("8+", 8, math.inf)):
        masks[f"prefix_{name}"] = (length >= low) & (length <= high)
    masks["frequent"] = count >= spec.frequent
    masks["rare"] = (count > 0) & (count < spec.frequent)
    masks["unseen"] = count == 0
    masks["with_history"] = history > 0
    masks["no_history"] = history == 0
    if "new" in rows.column_names:
        masks["new_query"] = rows["new"].to_numpy(zero_copy_only=False)
    return masks


def _blocks(batches: Iterable[pa.RecordBatch], block: int) -> Iterator[tuple[int, list[dict]]]:
    """Rows as dicts in blocks of `block` (the last may be shorter), and the first's number."""
    first, waiting = 0, []
    for batch in batches:
        missing = [name for name in _NEEDED if name not in batch.schema.names]
        if missing:
            raise UserError(
                f"evaluate: expected the columns {', '.join(_NEEDED)}, found no "
                f"{', '.join(missing)}; "
                "score a log that ingest has written"
            )
        profile = schema.profile_columns(batch.schema)
        rows = batch.select([*_NEEDED, *profile]).to_pylist()
        for row in rows:
            row["profile"] = [row[name] or "" for name in profile]
        waiting += rows
        while len(waiting) >= block:
            yield first, waiting[:block]
            first, waiting = first + block, waiting[block:]
    if waiting:
        yield first, waiting
