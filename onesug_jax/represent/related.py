"""What a request is shown beside its words: related queries H_p and the enhanced prefix e_p*.

Related queries come from two searches. The *pool* holds the most searched queries that start with
the prefix. The formula (`formula`), with cosines alone, leaves a *shortlist* of it, which is ranked
with all that is known of each: by the formula, or by a network where one was trained (`ranking`).
*Neighbours* are found by the fine-to-coarse search around e_p* (PAPER.md section 2, points 3 and 5;
`prefix_index`), and fill the last `neighbours` places, or as many as the pool leaves open: all of
them, where no known query starts with what was typed. The paper's search knows the prefix alone and
fills every place: `pool=0`. Ours adds the pool and the user's taste, because a prefix of one letter
has hundreds of neighbours and says nothing of this user.

A training row must not find itself in what is known of its prefix: see `without`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from onesug_jax.logs.ages import ages
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.profiles import ProfileCounts
from onesug_jax.logs.typos import Corrections, completed
from onesug_jax.logs.worth import OrderGrades, fold_of
from onesug_jax.represent.formula import RelatedConfig, likeness, scores
from onesug_jax.represent.overlap import WordOverlap
from onesug_jax.represent.ranking import Candidates, Ranker

_REMEMBERED = 1 << 16  # prefixes and texts whose vectors are kept
_LISTED = 1 << 12  # prefixes whose pools are kept as texts


class Index(Protocol):
    """What is asked of the prefix index (`prefix_index.PrefixIndex`)."""

    @property
    def dimension(self) -> int:
        """Width E of the vectors."""

    def vectors_of(self, numbers: np.ndarray) -> np.ndarray:
        """Unit embeddings `[n, E]` of the queries of these numbers."""

    def enhanced(self, prefix: str, without: int = -1) -> np.ndarray | None:
        """e_p* `[E]` of a known prefix, as if query `without` had not been searched once."""

    def pair_count(self, prefix: str, number: int) -> int:
        """How often a known prefix led to the query of that number."""

    def neighbours(self, prefix: str, k: int) -> np.ndarray | None:
        """Numbers of the queries nearest to a known prefix if worked out ahead, else None."""

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `[B, k]` of the nearest queries (-1: fewer exist), and cosines."""


class RelatedQueries:
    """Related queries and enhanced prefixes of requests (`tasks.features.Context`).

    Args:
      completions: known queries and how often each was searched.
      k: most related queries of a request.
      config: how they are chosen; None: as `RelatedConfig` has it.
      index: the prefix index; without it there are completions by popularity only, and no vectors.
      encode: texts -> unit embeddings `[n, E]`, for prefixes and history queries not in the index;
        None: such prefixes have no neighbours, such queries do not count as taste.
      soft: whether `vectors` gives the enhanced prefixes.
      ranker: ranks the pool instead of the formula; profiles: what it knows of profiles. They need
        an index.
      grades: how often searches of each known query end in an order.
      remembered: how many prefixes and texts are remembered.

    Attributes:
      history: how many of a user's queries it looks at.
      text_vector: text -> its unit embedding `[E]`, remembered; None where it cannot be embedded.
      number_of: text -> the number of a known query, else -1, remembered.
      meant: prefix -> known beginnings one slip away, and how likely each, remembered.
    """

    def __init__(
        self,
        completions: CompletionIndex,
        k: int,
        config: RelatedConfig | None = None,
        *,
        index: Index | None = None,
        encode: Callable[[Sequence[str]], np.ndarray] | None = None,
        soft: bool = True,
        ranker: Ranker | None = None,
        profiles: ProfileCounts | None = None,
        grades: OrderGrades | None = None,
        remembered: int = _REMEMBERED,
    ):
        self.completions, self.k = completions, k
        self.config = config = config or RelatedConfig()
        self.index, self._encode, self._soft = index, encode, soft
        self.history = config.history if index is not None else 0
        self._ranker, self._profiles, self._grades = ranker, profiles, grades
        self._overlap = WordOverlap(completions.queries)
        self._lengths = np.array([len(query) for query in completions.queries], np.int32)
        self.number_of = functools.lru_cache(maxsize=remembered)(completions.find)
        self.meant = functools.lru_cache(maxsize=remembered)(Corrections(completions).near)
        self._listed = functools.lru_cache(maxsize=_LISTED)(self._list_pool)
        self.text_vector = functools.lru_cache(maxsize=remembered)(self._vector_of_text)
        self._enhanced = functools.lru_cache(maxsize=remembered)(self._vector_of_prefix)
        self._neighbours = functools.lru_cache(maxsize=remembered)(self._search)

    def related(
        self,
        prefixes: Sequence[str],
        histories: Sequence[Sequence[str]],
        without: Sequence[str | None] | None = None,
        profiles: Sequence[Sequence[str]] | None = None,
        minutes: Sequence[Sequence[float]] | None = None,
    ) -> list[list[str]]:
        """At most k related queries of each request, best first, without repeats.

        Args:
          prefixes: what was typed, `[B]`.
          histories: each user's earlier queries, newest first.
          without: the query each row ended in, for training rows: it is left out of the counts
            once, and a query that nobody else searched for disappears.
          profiles: each user's profile values, which only a ranker looks at.
          minutes: how long ago each query of the histories was searched; none: just now.
        """
        if not self.k:
            return [[] for _ in prefixes]
        queries = without or [None] * len(prefixes)
        profiles = profiles or [()] * len(prefixes)
        minutes = minutes or [()] * len(prefixes)
        return [
            self._one(*request)
            for request in zip(prefixes, histories, profiles, queries, minutes, strict=True)
        ]

    def worth(
        self, related: Sequence[Sequence[str]], visitors: Sequence[str] | None = None
    ) -> list[list[int]]:
        """The grade of each related query; empty lists where no order is known of.

        `visitors` of training rows: their own searches, and those of their fold, do not count.
        """
        if not self._grades:
            return [[] for _ in related]
        folds = [-1] * len(related) if visitors is None else map(fold_of, visitors)
        return [
            self._grades.of(
                np.array([self.number_of(text) for text in texts], np.int64), fold
            ).tolist()
            for texts, fold in zip(related, folds, strict=True)
        ]

    def candidates(
        self,
        prefix: str,
        history: Sequence[str],
        profile: Sequence[str],
        own: str | None,
        minutes: Sequence[float] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `[n]` of the prefix's shortlist as the formula ranks it, and what a ranker sees
        of each, `[n, F]`; query `own` counted once less, and the history `minutes` ago.
        """
        number = -1 if own is None else self.number_of(own)
        history = history[: self.history]
        since = ages(minutes if self.config.ages else (), len(history))
        pool, counts, places, cosines = self._shortlist(prefix, history, since, number)
        overlaps, same = self._in_words(pool, history)
        alike = likeness(self.config, cosines, overlaps, same)
        order = self._order(pool, scores(self.config, counts, alike, since))
        lift = np.zeros(len(pool))
        if self._profiles is not None:
            lift = self._profiles.lift(pool, profile, number)
        first, last = self.completions.range(prefix)
        known = Candidates(
            counts=counts,
            places=places,
            typed=(first <= pool) & (pool < last),
            lengths=self._lengths[pool],
            words=self.words(pool),
            cosines=cosines,
            overlaps=overlaps,
            same=same,
            minutes=since,
            lift=lift,
            prefix_length=len(prefix),
        )
        return pool[order], known.features()[order]

    def pools(self, prefixes: Sequence[str], k: int) -> list[tuple[str, ...]]:
        """At most k known queries that start with each prefix, most searched first; where none
        does, those that start with what may have been meant.
        """
        return [self._listed(prefix, k) for prefix in prefixes]

    def _list_pool(self, prefix: str, k: int) -> tuple[str, ...]:
        numbers = self.completions.top(prefix, k)
        if not len(numbers) and self.config.typos:
            numbers = self._pool(prefix, -1)[0][:k]
        return tuple(self.completions.queries[i] for i in numbers)

    def vectors(
        self, prefixes: Sequence[str], without: Sequence[str | None] | None = None
    ) -> np.ndarray | None:
        """Enhanced prefixes e_p*, float32 `[B, E]`; None without an index, or if not `soft`.

        A prefix that cannot be embedded gets zeros. `without` as for `related`.
        """
        if self.index is None or not self._soft:
            return None
        queries = without or [None] * len(prefixes)
        found = [
            self._enhanced(p, self._alone(p, q)) for p, q in zip(prefixes, queries, strict=True)
        ]
        width = self._indexed.dimension
        return np.stack([np.zeros(width, np.float32) if v is None else v for v in found])

    @property
    def _indexed(self) -> Index:
        assert self.index is not None, "asked for what needs an index"
        return self.index

    def alone(self, prefixes: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Whether one training row alone led from a prefix to a query, `[B]`."""
        return [self._alone(p, q) >= 0 for p, q in zip(prefixes, queries, strict=True)]

    def query_vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Unit embeddings of known queries, `[n, E]`; needs an index."""
        return self._indexed.vectors_of(numbers)

    def cosines(self, numbers: np.ndarray, history: Sequence[str]) -> np.ndarray:
        """Of each of these known queries with each of the history, `[n, H]`; 0 without a vector."""
        if not len(numbers) or not len(history):
            return np.zeros((len(numbers), len(history)))
        none = np.zeros(self._indexed.dimension, np.float32)
        vectors = [self.text_vector(text) for text in history]
        past = np.stack([none if vector is None else vector for vector in vectors])
        return self._indexed.vectors_of(numbers) @ past.T

    def words(self, numbers: np.ndarray) -> np.ndarray:
        """How many distinct words each known query has, `[n]`."""
        return self._overlap.sizes(numbers)

    def shared_words(self, numbers: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Words in common over words in either, of known queries and texts, `[n, H]`."""
        return self._overlap.jaccard(numbers, texts)

    def nearest(self, prefix: str, k: int) -> list[int]:
        """Numbers of at most k queries nearest to the enhanced prefix; needs an index."""
        vector = self._enhanced(prefix, -1)
        if vector is None:
            return []
        return [int(i) for i in np.ravel(self._indexed.search(vector, k)[0]) if i >= 0]

    def _one(
        self,
        prefix: str,
        history: Sequence[str],
        profile: Sequence[str],
        without: str | None,
        minutes: Sequence[float],
    ) -> list[str]:
        own = -1 if without is None else self.number_of(without)
        numbers, features = self.candidates(prefix, history, profile, without, minutes)
        if self._ranker is not None:
            numbers = numbers[self._order(numbers, self._ranker(features))]
        ranked = numbers.tolist()
        if self.index is None or not self.config.neighbours and len(ranked) >= self.k:
            return [self.completions.queries[i] for i in ranked[: self.k]]
        first = ranked[: max(self.k - self.config.neighbours, 0)]
        taken = set(first)
        near = self._neighbours(prefix, self._alone(prefix, without))
        gone = own if own >= 0 and self.completions.counts[own] <= 1 else -1
        near = [i for i in near if i not in taken and i != gone][: self.k - len(first)]
        rest = [i for i in ranked[len(first) :] if i not in near]
        chosen = [*first, *rest[: self.k - len(first) - len(near)], *near]
        return [self.completions.queries[i] for i in chosen]

    def _pool(self, prefix: str, own: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and counts of the prefix's most searched queries, `own` counted once less."""
        pool, counts = self._completed(prefix, own)
        if len(pool) or not (self.config.pool and self.config.typos):
            return pool, counts
        likely = functools.partial(self._completed, own=own)
        return completed(self.meant(prefix), likely, self.config.pool)

    def _completed(self, prefix: str, own: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of the queries that start with the prefix as it was typed."""
        pool = np.zeros(0, np.int64)
        if self.config.pool:
            pool = self.completions.top(prefix, self.config.pool)
        counts = np.asarray(self.completions.counts)[pool] - (pool == own)
        return pool[counts > 0], counts[counts > 0]

    def _shortlist(
        self, prefix: str, history: Sequence[str], minutes: np.ndarray, own: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Those of the prefix's pool that deserve a closer look, in no order.

        Returns:
          their numbers, counts (`own` once less) and places in the pool by searches, `[n]` each,
          and their cosines with the user's queries, `[n, H]`; H is 0 without an index.
        """
        pool, counts = self._pool(prefix, own)
        places = np.empty(len(pool))
        places[np.argsort(-counts, kind="stable")] = np.arange(len(pool))
        cosines = self.cosines(pool, history)
        if len(pool) > self.config.shortlist:
            likely = scores(self.config, counts, cosines, minutes)
            best = self._order(pool, likely)[: self.config.shortlist]
            pool, counts, places, cosines = pool[best], counts[best], places[best], cosines[best]
        return pool, counts, places, cosines

    @staticmethod
    def _order(pool: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.lexsort((pool, -scores))

    def _in_words(self, pool: np.ndarray, history: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Word overlap of each query of the pool with each of the history, and whether they are the
        same, `[n, H]` each.
        """
        same = np.array([self.number_of(text) for text in history], np.int64)
        return self.shared_words(pool, history), pool[:, None] == same

    def _alone(self, prefix: str, query: str | None) -> int:
        """The query's number where what is known of the prefix hangs on this very row, else -1."""
        if query is None or self.index is None:
            return -1
        number = self.number_of(query)
        return number if number >= 0 and self.index.pair_count(prefix, number) == 1 else -1

    def _vector_of_text(self, text: str) -> np.ndarray | None:
        number = self.number_of(text)
        if number >= 0:
            return self._indexed.vectors_of(np.array([number]))[0]
        return self._encode([text])[0] if self._encode else None

    def _vector_of_prefix(self, prefix: str, without: int) -> np.ndarray | None:
        vector = self._indexed.enhanced(prefix, without)
        if vector is None and self._encode:
            vector = self._encode([prefix])[0]
        return vector

    def _search(self, prefix: str, without: int) -> list[int]:
        ahead = self._indexed.neighbours(prefix, self.k) if without < 0 else None
        if ahead is not None:
            return ahead.tolist()
        vector = self._enhanced(prefix, without)
        if vector is None:
            return []
        numbers, _ = self._indexed.search(vector, self.k)
        return [int(i) for i in np.ravel(numbers) if i >= 0]
