"""The cascade that OneSug replaces: recall, pre-rank and rank (PAPER.md, "MCA").

  recall     the candidates of the request (`logs.asof`): completions, neighbours, own queries
  pre-rank   the best `pre_ranked` candidates by one decayed count
  rank       LightGBM's LambdaMART over hand-made features

Its inputs are those of the model, as of the same moment: counts of each candidate, the history with
its ages, the aligned vectors, words. `cascade_training` trains the ranker on the model's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.items import Items
from onesug_jax.retrieval.tables import QueryTables
from onesug_jax.tasks.features import Request

_LEAST = -10.0  # lower bound of log counts
_VISIT = 10.0  # minutes; half-life of an earlier query's weight in this visit
_DECAY = 0.95  # ratio of the weights of successive older queries


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Sizes of the steps, and settings of LightGBM.

    Attributes:
      pre_ranked: number of candidates after the pre-rank.
      half_life: index in `AsOfConfig.half_lives_days` of the count used by the pre-rank.
      rows: number of newest train rows for the ranker.
      orders: weight of a row with an order; the others have 1.
      trees, leaves, learning_rate: of LambdaMART. The last tenth of the rows decides on early
        stopping.
      least: minimum number of rows in a leaf.
    """

    pre_ranked: int = 320
    half_life: int = 2
    rows: int = 20_000
    orders: float = 1.0
    trees: int = 600
    leaves: int = 31
    learning_rate: float = 0.05
    least: int = 50

    def __post_init__(self) -> None:
        wrong = min(self.pre_ranked, self.rows, self.trees) < 1 or self.half_life < 0
        if wrong or not self.orders > 0:
            raise UserError(
                "CascadeConfig: expected pre_ranked, rows and trees of at least 1, half_life of at "
                f"least 0 and orders above 0, found {self}."
            )


def names(config: AsOfConfig) -> tuple[str, ...]:
    """Names of the F features, in the order of `features`."""
    columns = config.columns
    return (
        *columns,
        *(f"share_{name}" for name in columns),
        *(f"change_{name}" for name in columns[1:]),
        *("place", "candidates", "words", "typed", "missing", "hour", "weekday", "cosine_prefix"),
        *("past", "since", "visit", "repeated", "repeated_place", "repeated_minutes"),
        *(f"{name}_{aggregate}" for name in ("cosine", "overlap") for aggregate in _AGGREGATES),
    )


_AGGREGATES = ("most", "latest", "mean", "decayed", "visit", "visit_mean")


def features(items: Items, typed: int, prefix_row: int, tables: QueryTables) -> np.ndarray:
    """The ranker's features of the n candidates of a request, float32 `[n, F]`.

    Args:
      items: of the request; positions after the n candidates are empty.
      typed: characters of the prefix. prefix_row: its row of `tables.prefix_vectors`, 0: none.
    """
    n, past = (int(np.count_nonzero(rows)) for rows in (items.candidates, items.history))
    candidates, history = items.candidates[:n], items.history[:past]
    # The examples store float16; training and evaluation must see the same values.
    counts = items.candidate_counts[:n].astype(np.float16).astype(np.float32)
    counts = np.maximum(counts, _LEAST)
    minutes = items.history_minutes[:past].astype(np.float64)
    total = np.exp(counts.astype(np.float64)).sum(axis=0, keepdims=True)
    visit = np.exp2(-minutes / _VISIT)
    own = tables.vectors[candidates]
    same = candidates[:, None] == history
    recency = 1 / (1.0 + np.arange(past))
    never = np.log1p(43_200.0)  # a month
    age = np.where(same, np.log1p(minutes), never).min(axis=1, initial=never)
    columns = {
        "place": np.arange(n),
        "candidates": n,
        "words": np.count_nonzero(tables.words[candidates], axis=1),
        "typed": typed,
        "missing": tables.lengths[candidates] - typed,
        "hour": items.clock[0],
        "weekday": items.clock[1],
        "cosine_prefix": own @ tables.prefix_vectors[prefix_row],
        "past": past,
        "since": np.log1p(minutes[0]) if past else never,
        "visit": visit.sum(),
        "repeated": same.any(axis=1),
        "repeated_place": (same * recency).max(axis=1, initial=0.0),
        "repeated_minutes": age,
    }
    similarities = (own @ tables.vectors[history].T, overlap(tables, candidates, history))
    parts = [counts, counts - np.log(np.maximum(total, 1e-30)), counts[:, 1:] - counts[:, :1]]
    parts += [np.stack([np.broadcast_to(column, (n,)) for column in columns.values()], axis=1)]
    parts += [_aggregates(table, visit) for table in similarities]
    return np.concatenate(parts, axis=1).astype(np.float32)


def overlap(tables: QueryTables, candidates: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Weighted Jaccard similarity of the words of candidates and history queries, `[n, H]`; both
    are rows of the tables.
    """
    own, past = tables.words[candidates], tables.words[history]
    weights = tables.word_weights[candidates], tables.word_weights[history]
    distinct = np.unique(past[past > 0])
    index = np.minimum(np.searchsorted(distinct, own), max(len(distinct) - 1, 0))
    match = (own > 0) & (distinct[index] == own) if len(distinct) else np.zeros(own.shape, bool)
    own_weights = np.zeros((len(own), len(distinct)))
    own_weights[np.nonzero(match)[0], index[match]] = weights[0][match]
    past_words = np.zeros((len(distinct), len(past)))
    rows, slots = np.nonzero(past > 0)
    past_words[np.searchsorted(distinct, past[rows, slots]), rows] = 1.0
    shared = own_weights @ past_words
    union = weights[0].sum(axis=1)[:, None] + weights[1].sum(axis=1) - shared
    return shared / np.maximum(union, 1e-9)


def _aggregates(table: np.ndarray, visit: np.ndarray) -> np.ndarray:
    """The columns _AGGREGATES `[n, 6]` of similarities to the history `[n, H]`, newest first."""
    if not table.shape[1]:
        return np.zeros((len(table), len(_AGGREGATES)))
    decayed = table * _DECAY ** np.arange(table.shape[1])
    columns = (
        table.max(axis=1),
        table[:, 0],
        table.mean(axis=1),
        decayed.max(axis=1),
        (table * visit).max(axis=1),
        table @ visit / max(visit.sum(), 1.0),
    )
    return np.stack(columns, axis=1)


def pre_rank(items: Items, config: CascadeConfig) -> np.ndarray:
    """Indices of the candidates after the pre-rank, best first, `[<= pre_ranked]`."""
    n = np.count_nonzero(items.candidates)
    order = np.argsort(-items.candidate_counts[:n, config.half_life], kind="stable")
    return order[: config.pre_ranked]


def cascade(
    ranker,
    config: CascadeConfig,
    tables: QueryTables,
    text_of: Callable[[int], str],
    prefix_row: Callable[[str], int],
) -> Callable[..., list[list[str]]]:
    """The three steps as a function with the model's interface: up to k queries for each request
    (with `items`), best first.

    Args:
      ranker: its `predict` scores features `[n, F]`.
      tables: vectors and words by row.
      text_of: query number -> text. prefix_row: prefix -> its row of the table of prefixes.
    """

    def suggest(requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        candidates, inputs = [], []
        for request in requests:
            assert request.items is not None, "the cascade needs Request.items"
            retained = pre_rank(request.items, config)
            prefix, row = request.prefix, prefix_row(request.prefix)
            candidates.append(request.items.candidates[retained])
            inputs.append(features(request.items, len(prefix), row, tables)[retained])
        sizes = [len(numbers) for numbers in candidates]
        if not sum(sizes):
            return [[] for _ in requests]
        scores = np.split(ranker.predict(np.concatenate(inputs)), np.cumsum(sizes)[:-1])
        return [
            [text_of(n - 1) for n in numbers[np.argsort(-part, kind="stable")[:k]].tolist()]
            for numbers, part in zip(candidates, scores, strict=True)
        ]

    return suggest
