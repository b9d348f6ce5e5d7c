"""Arrays of all indexed queries and prefixes by number: vectors, words (PAPER.md section 2).

Row 0 means none, and the row of a query is its number + 1, as in the arrays of requests
(`logs.asof`). Queries that appear later get the spare rows at the end, so that no shape changes and
nothing is compiled again. Numpy only; the model reads the arrays on the device.
"""

from __future__ import annotations

import collections
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.schema import split_words

WORDS = 8  # most distinct words stored for a query
_CODES = 2**24 - 1


def words_of(text: str) -> list[str]:
    """The distinct words of a query (`logs.schema.split_words`), at most `WORDS`."""
    return list(dict.fromkeys(split_words(text)))[:WORDS]


@dataclass
class QueryTables:
    """Arrays of all queries and prefixes; see the module docstring.

    Attributes:
      vectors: `[R, E]` float32, unit vectors e_q*; R is 1 + N + spare, or more.
      words: `[R, WORDS]` int32, hashed words, then 0.
      word_weights: `[R, WORDS]` float32: log(1 + N / number of queries that contain the word).
      lengths: `[R]` float32, characters of a query.
      prefix_vectors: `[1 + P, E]` float32, unit vectors e_p; zeros in further rows.
      first: N, the number of queries at the start.
      frequency: word -> number of the N queries that contain it.
    """

    vectors: np.ndarray
    words: np.ndarray
    word_weights: np.ndarray
    lengths: np.ndarray
    prefix_vectors: np.ndarray
    first: int
    frequency: dict[str, int]

    @classmethod
    def build(
        cls,
        queries: Sequence[str],
        vectors: np.ndarray,
        prefix_vectors: np.ndarray,
        spare: int = 0,
        multiple: int = 1,
    ) -> QueryTables:
        """Tables of N queries.

        Args:
          queries: by number.
          vectors: `[N, E]`, of any length.
          prefix_vectors: `[P, E]`.
          spare: rows for queries that appear later.
          multiple: numbers of rows are multiples of it, so that versions of similar size have the
            same shapes and need no compilation.

        Raises:
          ValueError: the number of vectors is not the number of queries.
        """
        if len(queries) != len(vectors):
            raise ValueError(f"{len(queries)} queries but {len(vectors)} vectors")
        parts = [words_of(query) for query in queries]
        frequency = dict(collections.Counter(word for words in parts for word in words))
        rows, rows_of_prefixes = (
            -(-n // multiple) * multiple
            for n in (1 + len(queries) + spare, 1 + len(prefix_vectors))
        )
        tables = cls(
            np.zeros((rows, vectors.shape[1]), np.float32),
            np.zeros((rows, WORDS), np.int32),
            np.zeros((rows, WORDS), np.float32),
            np.zeros(rows, np.float32),
            np.zeros((rows_of_prefixes, vectors.shape[1]), np.float32),
            len(queries),
            frequency,
        )
        tables.vectors[1 : 1 + len(queries)] = unit(np.asarray(vectors, np.float32))
        tables.prefix_vectors[1 : 1 + len(prefix_vectors)] = prefix_vectors
        tables.lengths[1 : 1 + len(queries)] = [len(query) for query in queries]
        for number, words in enumerate(parts):
            tables._set_words(number, words)
        return tables

    def add(
        self, numbers: Sequence[int], texts: Sequence[str], encode: Callable[..., np.ndarray]
    ) -> None:
        """Fills the rows of new queries; `encode(texts)` gives their vectors `[n, E]`."""
        if not len(numbers):
            return
        self.vectors[np.asarray(numbers) + 1] = unit(np.asarray(encode(list(texts)), np.float32))
        for number, text in zip(numbers, texts, strict=True):
            self.lengths[number + 1] = len(text)
            self._set_words(number, words_of(text))

    def _set_words(self, number: int, words: Iterable[str]) -> None:
        for place, word in enumerate(words):
            self.words[number + 1, place] = 1 + zlib.crc32(word.encode()) % _CODES
            queries = self.frequency.get(word, 1)
            self.word_weights[number + 1, place] = np.log(1 + max(self.first, 1) / queries)


def unit(vectors: np.ndarray) -> np.ndarray:
    """`[n, E]` scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
