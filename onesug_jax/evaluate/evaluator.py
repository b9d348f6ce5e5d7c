"""Scores suggesters on every row of a split, in order.

`score_rows` returns a table of the truth, its rank in each suggester's list, and the lists.
`summarise` computes metrics of that table by slice; `evaluate` does both. Several processes each
score their own blocks of rows, and `merge_parts` joins the tables in the split's order.

`rows` defines a hit and the columns of the table; `replay` makes the same table in time order.
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
from onesug_jax.files import open_parquet
from onesug_jax.logs import schema
from onesug_jax.progress import Progress
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.tasks.features import make_requests

Metric = Callable[[np.ndarray, int], float]  # (ranks int [N], k) -> share, such as `metrics.hr_at`
METRICS = ("hr@16", "mrr@16", "ndcg@16", "success@10", "mrr@10")  # of `evaluate` by default

_NEEDED = (
    *("request_id", "prefix", "query", "clicked_items", "ordered_items"),
    *(schema.RECENT, schema.RECENT_MINUTES),
)


@dataclass(frozen=True)
class SliceSpec:
    """Bounds of the slices.

    Attributes:
      frequent: minimum occurrences in train of a frequent prefix; with fewer it is rare, with none
        unseen.
    """

    frequent: int = 10


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      metrics: {suggester: {slice: {metric: per cent, "n": rows}}}; None for an empty slice.
      rows: one row per request of the split, in its order (columns: see `score_rows`).
      freshness: minimum age of other users' searches that a request sees ("1m"); None: the split
        was not replayed through time.
    """

    metrics: dict[str, dict[str, dict[str, float | int | None]]]
    rows: pa.Table
    freshness: str | None = None


def prefix_counts(train_parquet: str) -> collections.Counter[str]:
    """Occurrences of each exact prefix in the train split; UserError if the file is missing."""
    if not os.path.isfile(train_parquet):
        raise UserError(
            f"{train_parquet}: expected the train split, found no such file; run ingest first"
        )
    counts: collections.Counter[str] = collections.Counter()
    with open_parquet(train_parquet) as file:
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
    """Scores every row of `batches` (a split with its histories) with every suggester.

    See `score_rows` and `summarise` for the arguments; `exchange` returns the bytes of all
    processes to each of them. Raises UserError for an empty split.

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
    options: dict[str, Any] = {"k": k, "short_k": short_k, "indexed": indexed, "further": further}
    return Evaluation(summarise(rows, slices=slices, **options), rows)


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
    """Runs every suggester on every row; each of several processes takes its own blocks.

    Args:
      batches: rows of a split in order, with the columns of `logs.history.with_history`.
      suggesters: name -> function from up to `block` requests to their lists, best first, of texts
        or of suggestions with a score.
      prefix_counts: occurrences of each prefix in train.
      context: adds related queries and enhanced prefixes to the requests.
      k: lists are truncated to k.
      visible: whether the table may contain the text of an earlier query; rare queries are private.
      process: (index, number of processes): block i belongs to the process i modulo their number.

    Returns:
      columns row, request_id, prefix, truth, level (name), prefix_count, history (its length),
      recent (the newest queries of the history), and for each suggester rank_NAME (1-based, 0
      absent), list_NAME, scores_NAME and written_NAME (null if the suggester has none).

    Raises:
      UserError: a column is missing, or the split has no row.
      ValueError: the numbers of lists and requests differ, or a list repeats a text.
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
    """Joins the rows of all processes in the split's order; see `evaluate`."""
    if process[1] == 1:
        return rows
    return merge_parts([pickle.loads(part) for part in exchange(pickle.dumps(rows))])


def merge_parts(parts: Sequence[pa.Table]) -> pa.Table:
    """The tables of all processes as one, in the split's order.

    Raises ValueError if a row is missing or repeated.
    """
    table = pa.concat_tables(parts).sort_by("row")
    if not np.array_equal(table["row"].to_numpy(), np.arange(table.num_rows)):
        raise ValueError("the parts of the evaluation have missing or repeated rows of the split")
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

    Each slice has hr@k, mrr@k, ndcg@k, success@short_k, mrr@short_k, n, and NAME@k for each of the
    `further` metrics, and after a replay recall, the share of rows whose query is among the
    candidates. The slice "all" also has answered (share of non-empty lists), diversity,
    distinct (number of distinct suggestions), and with the number of `indexed` queries coverage
    (distinct / indexed). For suggestions with the attribute `written` it has written (share of
    lists with a written query) and written_plausible (share of the written queries that are
    `plausible`, or None).
    """
    masks = _slices(rows, slices)
    recalls = {}
    if "candidate" in rows.column_names:
        candidate = rows["candidate"].to_numpy(zero_copy_only=False)
        recalls = {
            label: {"recall": _per_cent(float(candidate[mask].mean())) if mask.any() else None}
            for label, mask in masks.items()
        }
    result = {}
    for name in suggesters_of(rows):
        result[name] = {
            label: _scores(ranks_of(rows, name, orders=label == "order")[mask], k, short_k, further)
            | recalls.get(label, {})
            for label, mask in masks.items()
        }
        lists = rows[f"list_{name}"].to_pylist()
        overall = result[name]["all"]
        overall["answered"] = _per_cent(metrics.answered(lists))
        overall["diversity"] = _per_cent(metrics.diversity(lists))
        overall["distinct"] = len({text for texts in lists for text in texts})
        if indexed:
            overall["coverage"] = _per_cent(metrics.coverage(lists, indexed))
        column = f"written_{name}"
        if column in rows.column_names and rows[column].null_count < rows.num_rows:
            overall |= _written(lists, rows[column].to_pylist(), plausible)
    return result


def _written(
    lists: Sequence[Sequence[str]],
    flags: Sequence[Sequence[bool] | None],
    plausible: Callable[[str], bool] | None,
) -> dict[str, float | int | None]:
    """The metrics of written queries; see `summarise`."""
    written = [
        [text for text, flag in zip(texts, marks or (), strict=False) if flag]
        for texts, marks in zip(lists, flags, strict=True)
    ]
    scores: dict[str, float | int | None] = {"written": _per_cent(metrics.answered(written))}
    if plausible is not None:
        valid = [plausible(text) for texts in written for text in texts]
        scores["written_plausible"] = 100.0 * sum(valid) / len(valid) if valid else None
    return scores


def headline(
    rows: pa.Table, names: Sequence[str]
) -> dict[str, list[tuple[float, float, float] | None]]:
    """Suggester -> HR@16 and MRR@16 of all rows, then of rows with an order, in per cent: (mean,
    low, high) with the bounds of the 95 % bootstrap interval; None without rows.
    """
    order = rows["level"].to_numpy(zero_copy_only=False) == "order"
    means: dict[str, list[tuple[float, float, float] | None]] = {}
    for name in names:
        means[name] = []
        for ranks in (ranks_of(rows, name), ranks_of(rows, name, orders=True)[order]):
            hits = (ranks > 0) & (ranks <= 16)
            for values in (100.0 * hits, np.where(hits, 100 / np.maximum(ranks, 1), 0.0)):
                mean = (float(values.mean()), *metrics.interval(values)) if len(values) else None
                means[name].append(mean)
    return means


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

    order, item_click and click contain the rows of exactly that level: a row with an order is not
    in item_click. prefix_0 exists only if a prefix is empty, and new_query (queries without a
    search as of the request) only after a replay through time.
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
    """Blocks of `block` rows as dicts (the last may be shorter), each with its first row number."""
    first, waiting = 0, []
    for batch in batches:
        missing = [name for name in _NEEDED if name not in batch.schema.names]
        if missing:
            raise UserError(
                f"evaluate: expected the columns {', '.join(_NEEDED)}, found no "
                f"{', '.join(missing)}; score a log that ingest has written"
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
