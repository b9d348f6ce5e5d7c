"""The rival that OneSug replaces: recall, pre-rank and rank, one after another (PAPER.md, "MCA").

  recall     the most searched queries that start with the prefix, and those nearest to its enhanced
             embedding by the aligned encoder
  pre-rank   popularity and likeness to the user's history, one weighted sum: keeps `kept`
  rank       LightGBM's LambdaMART over `FEATURES`

Trained on the newest rows of the train split with statistics of the rows before them, so that no
count knows its own row (`cascade_training`); it then serves with the statistics of all. The
encoder, e_q* and e_p* are those of the whole train split, a row being left out of e_p* only where
it alone led from prefix to query, as in the model's examples. It sees what the model sees: prefix,
history, profile, and what was mined and aligned.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.ages import ages, of_visit
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.profiles import ProfileCounts
from onesug_jax.logs.schema import Level
from onesug_jax.logs.typos import completed
from onesug_jax.tasks.features import Request

FEATURES = (
    "log_count",
    "log_orders",
    "log_item_clicks",
    "order_rate",
    "recent_share",
    "log_recent",
    "log_pair",
    "pair_share",
    "popular_place",
    "starts",
    "prefix_length",
    "query_length",
    "query_words",
    "missing",
    "cosine_prefix",
    "cosine_history",
    "cosine_latest",
    "cosine_mean",
    "decayed_cosine",
    "in_history",
    "history_place",
    "history_words",
    "latest_words",
    "history_length",
    "log_since",
    "visit",
    "cosine_visit",
    "cosine_visit_mean",
    "visit_words",
    "profile",
)
_DAY_MS = 86_400_000


class Known(Protocol):
    """What is asked of the aligned encoder and its index (`represent.related.RelatedQueries`).

    Attributes:
      completions: the known queries. history: how many of a user's queries are looked at.
    """

    completions: CompletionIndex
    history: int

    def vectors(
        self, prefixes: Sequence[str], without: Sequence[str | None] | None = None
    ) -> np.ndarray | None:
        """Enhanced prefixes, `[B, E]`."""

    def query_vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Unit embeddings of known queries, `[n, E]`."""

    def cosines(self, numbers: np.ndarray, history: Sequence[str]) -> np.ndarray:
        """Of each of these known queries with each of the history, `[n, H]`."""

    def words(self, numbers: np.ndarray) -> np.ndarray:
        """How many distinct words each known query has, `[n]`."""

    def shared_words(self, numbers: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Words in common over words in either, of known queries and texts, `[n, H]`."""

    def nearest(self, prefix: str, k: int) -> list[int]:
        """Numbers of the queries nearest to the enhanced prefix, nearest first."""

    def meant(self, prefix: str) -> dict[str, float]:
        """Known beginnings one slip away from a prefix, and how likely each."""

    def alone(self, prefixes: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Whether one training row alone led from a prefix to a query."""


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Sizes of the three steps, and LightGBM's.

    Attributes:
      recalled: most completions recalled; near: most neighbours by the encoder.
      kept: candidates left by the pre-rank.
      taste, decay: weight of likeness to the history in the pre-rank, and how much less each older
        query of it counts. visit: weight of likeness to the queries of this visit.
      newest: share of the train split's rows, its newest, that the ranker learns from.
      half_life_days: of the recency-weighted counts.
      orders: how much more a row that ended in an order weighs than another.
      trees, leaves, learning_rate, least: of LambdaMART; `least` rows a leaf. Fewer trees are used
        where the last tenth of the rows says so.
    """

    recalled: int = 4096
    near: int = 16
    kept: int = 128
    taste: float = 10.0
    decay: float = 0.95
    visit: float = 5.0
    newest: float = 0.4
    half_life_days: float = 7.0
    orders: float = 1.0
    trees: int = 600
    leaves: int = 31
    learning_rate: float = 0.05
    least: int = 50

    def __post_init__(self) -> None:
        wrong = min(self.recalled, self.kept, self.trees) < 1 or not 0 < self.newest < 1
        if wrong or not self.orders > 0:
            raise UserError(
                f"CascadeConfig: expected recalled, kept and trees of at least 1, newest between "
                f"0 and 1 and orders above 0, found {self}."
            )


@dataclasses.dataclass(frozen=True)
class Row:
    """One request of the train split and where it led; history newest first, `minutes` ago."""

    prefix: str
    query: str
    level: Level
    time_ms: int
    history: Sequence[str]
    profile: Sequence[str]
    minutes: Sequence[float] = ()


class Statistics:
    """What some rows of a log say of every known query; arrays `[N]` in the queries' order."""

    def __init__(self, rows: Iterable[Row], completions: CompletionIndex, half_life_days: float):
        size = len(completions)
        rows = list(rows)
        self.now = max((row.time_ms for row in rows), default=0)
        self.counts = np.zeros(size, np.int64)
        self.orders, self.items = np.zeros(size), np.zeros(size)
        self.recent = np.zeros(size)
        self.pairs: collections.Counter[tuple[str, int]] = collections.Counter()
        self.prefixes: collections.Counter[str] = collections.Counter()
        for row in rows:
            number = completions.find(row.query)
            if number < 0:
                continue
            self.counts[number] += 1
            self.orders[number] += row.level == Level.ORDER
            self.items[number] += row.level >= Level.ITEM_CLICK
            age = (self.now - row.time_ms) / _DAY_MS
            self.recent[number] += 0.5 ** (age / half_life_days)
            self.pairs[row.prefix, number] += 1
            self.prefixes[row.prefix] += 1
        self.profiles = ProfileCounts.from_rows(
            size, ((completions.find(row.query), row.profile) for row in rows)
        )
        self.index = CompletionIndex(completions.queries, self.counts)


class Cascade:
    """The three steps over one set of statistics; `suggest` answers as the model does."""

    def __init__(self, known: Known, statistics: Statistics, config: CascadeConfig, ranker=None):
        self.known, self.statistics, self.config, self.ranker = known, statistics, config, ranker

    def candidates(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Numbers that survive recall and pre-rank, best first `[C]`, and their features
        `[C, F]`.
        """
        config, statistics = self.config, self.statistics
        popular = self._completions(request.prefix)
        near = np.array(self.known.nearest(request.prefix, config.near), np.int64)
        near = near[~np.isin(near, popular)]
        numbers = np.concatenate([popular, near]).astype(np.int64)
        place = np.concatenate([np.arange(len(popular)), np.full(len(near), config.recalled)])
        there = statistics.counts[numbers] > 0
        numbers, place = numbers[there], place[there]
        if not len(numbers):
            return numbers, np.zeros((0, len(FEATURES)), np.float32)
        history = request.history[: self.known.history]
        since = ages(request.minutes, len(history))
        alike = self.known.cosines(numbers, history)
        decayed = (alike * config.decay ** np.arange(alike.shape[1])).max(axis=1, initial=0.0)
        visited = (alike * of_visit(since)).max(axis=1, initial=0.0)
        first = np.log(statistics.counts[numbers])
        first += config.taste * decayed + config.visit * visited
        best = np.lexsort((numbers, -first))[: config.kept]
        return numbers[best], self._features(
            request, numbers[best], alike[best], decayed[best], visited[best], since, place[best]
        )

    def _completions(self, prefix: str) -> np.ndarray:
        """The most searched queries that start with the prefix, else with what it may mean."""
        most, statistics = self.config.recalled, self.statistics

        def complete(text: str) -> tuple[np.ndarray, np.ndarray]:
            numbers = statistics.index.top(text, most)
            return numbers, statistics.counts[numbers]

        numbers, _ = complete(prefix)
        return numbers if len(numbers) else completed(self.known.meant(prefix), complete, most)[0]

    def _features(self, request, numbers, alike, decayed, visited, since, place) -> np.ndarray:
        s, prefix = self.statistics, request.prefix
        texts = [self.known.completions.queries[n] for n in numbers.tolist()]
        counts = s.counts[numbers].astype(float)
        pairs = np.array([s.pairs.get((prefix, n), 0) for n in numbers.tolist()], float)
        own = request.vector
        history = list(request.history[: self.known.history])
        visit = of_visit(since)
        where = {text: i for i, text in reversed(list(enumerate(history)))}
        shared = self.known.shared_words(numbers, history)
        zeros = np.zeros(len(numbers))
        columns = {
            "log_count": np.log(counts),
            "log_orders": np.log1p(s.orders[numbers]),
            "log_item_clicks": np.log1p(s.items[numbers]),
            "order_rate": (s.orders[numbers] + 0.5) / (counts + 2),
            "recent_share": s.recent[numbers] / counts,
            "log_recent": np.log1p(s.recent[numbers]),
            "log_pair": np.log1p(pairs),
            "pair_share": pairs / (s.prefixes.get(prefix, 0) + 1),
            "popular_place": place,
            "starts": np.array([text.startswith(prefix) for text in texts]),
            "prefix_length": zeros + len(prefix),
            "query_length": np.array([len(text) for text in texts]),
            "query_words": self.known.words(numbers),
            "missing": np.array([len(text) - len(prefix) for text in texts]),
            "cosine_prefix": zeros if own is None else self.known.query_vectors(numbers) @ own,
            "cosine_history": alike.max(axis=1, initial=0.0),
            "cosine_latest": alike[:, 0] if history else zeros,
            "cosine_mean": alike.mean(axis=1) if history else zeros,
            "decayed_cosine": decayed,
            "in_history": np.array([text in where for text in texts]),
            "history_place": np.array([where.get(text, 99) for text in texts]),
            "history_words": shared.max(axis=1, initial=0.0),
            "latest_words": shared[:, 0] if history else zeros,
            "history_length": zeros + len(history),
            "log_since": zeros + (np.log1p(since[0]) if history else np.nan),
            "visit": zeros + visit.sum(),
            "cosine_visit": visited,
            "cosine_visit_mean": alike @ visit / max(visit.sum(), 1.0),
            "visit_words": (shared * visit).max(axis=1, initial=0.0),
            "profile": s.profiles.lift(numbers, request.profile),
        }
        return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)

    def suggest(self, requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        """Up to k queries for each request, best first."""
        found = [self.candidates(request) for request in requests]
        sizes = [len(numbers) for numbers, _ in found]
        if not sum(sizes):
            return [[] for _ in requests]
        scores = self.ranker.predict(np.concatenate([features for _, features in found]))
        lists = []
        for (numbers, _), part in zip(found, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
            best = np.argsort(-part, kind="stable")[:k]
            lists.append([self.known.completions.queries[n] for n in numbers[best].tolist()])
        return lists
