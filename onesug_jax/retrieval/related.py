"""The text model's inputs from the index: related queries H_p and the enhanced prefix e_p*
(PAPER.md section 2, points 3 and 5).

Both come from the prefix index: H_p are the queries that the fine-to-coarse search over semantic
ids finds around e_p*, best first. They depend on the prefix, not on the user. A prefix without
mined queries is searched for by its plain vector e_p.

The search of a training row is itself among the pairs behind e_p*. Models with items (`logs.asof`)
do not use this file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.typos import Corrections, completed

if TYPE_CHECKING:
    from onesug_jax.retrieval.prefix_index import PrefixIndex

_CACHED = 1 << 16  # prefixes and texts
_CACHED_LISTS = 1 << 12  # prefixes whose completions are cached as texts


class RelatedQueries:
    """Related queries and enhanced prefixes of requests (`tasks.features.Context`).

    Args:
      completions: indexed queries and their counts.
      k: most related queries of a request.
      index: the prefix index; None: related queries are the most searched completions, and there
        are no vectors.
      encode: texts -> unit embeddings `[n, E]`, for prefixes that are not in the index; None: such
        prefixes have no related queries.
      soft: whether `vectors` gives the enhanced prefixes.

    Attributes:
      text_vector: text -> its unit embedding `[E]`, cached; None if it cannot be embedded.
      number_of: text -> the number of an indexed query, else -1, cached.
      meant: prefix -> beginnings of indexed queries one typing error away, with the
        relative likelihood of each, cached.
    """

    def __init__(
        self,
        completions: CompletionIndex,
        k: int,
        *,
        index: PrefixIndex | None = None,
        encode: Callable[[Sequence[str]], np.ndarray] | None = None,
        soft: bool = True,
    ):
        self.completions, self.k = completions, k
        self.index, self._encode, self._soft = index, encode, soft
        self.number_of = functools.lru_cache(maxsize=_CACHED)(completions.find)
        self.meant = functools.lru_cache(maxsize=_CACHED)(Corrections(completions).near)
        self._completions = functools.lru_cache(maxsize=_CACHED_LISTS)(self._complete)
        self.text_vector = functools.lru_cache(maxsize=_CACHED)(self._vector_of_text)
        self._enhanced = functools.lru_cache(maxsize=_CACHED)(self._vector_of_prefix)
        self._related = functools.lru_cache(maxsize=_CACHED)(self._search)

    def related(self, prefixes: Sequence[str]) -> list[list[str]]:
        """At most k related queries of each prefix, best first, without repeats."""
        if not self.k:
            return [[] for _ in prefixes]
        search = self._completions if self.index is None else self._related
        return [list(search(prefix, self.k)) for prefix in prefixes]

    def vectors(self, prefixes: Sequence[str]) -> np.ndarray | None:
        """Enhanced prefixes e_p*, float32 `[B, E]`; None without an index, or if not `soft`.

        A prefix that cannot be embedded gets zeros.
        """
        if self.index is None or not self._soft:
            return None
        zeros = np.zeros(self.index.dimension, np.float32)
        vectors = [self._enhanced(prefix) for prefix in prefixes]
        return np.stack([zeros if vector is None else vector for vector in vectors])

    def _complete(self, prefix: str, k: int) -> tuple[str, ...]:
        """At most k indexed queries that start with the prefix, most searched first; if there are
        none, those that start with a correction of it.
        """

        def complete(text: str) -> tuple[np.ndarray, np.ndarray]:
            numbers = self.completions.top(text, k)
            return numbers, np.asarray(self.completions.counts)[numbers]

        numbers, _ = complete(prefix)
        if not len(numbers):
            numbers, _ = completed(self.meant(prefix), complete, k)
        return tuple(self.completions.queries[i] for i in numbers)

    def _search(self, prefix: str, k: int) -> tuple[str, ...]:
        assert self.index is not None
        numbers = self.index.neighbours(prefix, k)
        if numbers is None:
            vector = self._enhanced(prefix)
            if vector is None:
                return ()
            numbers = np.ravel(self.index.search(vector, k)[0])
        return tuple(self.completions.queries[i] for i in numbers.tolist() if i >= 0)

    def _vector_of_text(self, text: str) -> np.ndarray | None:
        number = self.number_of(text)
        if number >= 0 and self.index is not None:
            return self.index.vectors_of(np.array([number]))[0]
        return self._encode([text])[0] if self._encode else None

    def _vector_of_prefix(self, prefix: str) -> np.ndarray | None:
        assert self.index is not None
        vector = self.index.enhanced(prefix)
        if vector is None and self._encode:
            vector = self._encode([prefix])[0]
        return vector
