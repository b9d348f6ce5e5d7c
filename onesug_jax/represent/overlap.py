"""How many words two queries share: the part of likeness that an encoder's cosine blurs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

_REMEMBERED = 1 << 20  # queries whose words are kept
# A run of letters and digits is a word; in scripts written without spaces every character is one.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u9fff]+")


def words(text: str) -> frozenset[str]:
    """The distinct words of a text."""
    return frozenset(_WORD.findall(text))


class WordOverlap:
    """Word overlap of known queries, by number, with any texts.

    Args:
      queries: known queries by number.
    """

    def __init__(self, queries: Sequence[str]):
        self._queries = queries
        self._numbers: dict[str, int] = {}  # of the words of known queries
        self._of_query = functools.lru_cache(maxsize=_REMEMBERED)(self._words_of_query)
        self._of_text = functools.lru_cache(maxsize=_REMEMBERED >> 4)(words)

    def jaccard(self, numbers: Iterable[int], texts: Sequence[str]) -> np.ndarray:
        """Words in common over words in either, `[n, H]` for n known queries and H texts."""
        own = [self._of_query(int(number)) for number in numbers]
        sizes = np.array([len(found) for found in own], np.int64)
        flat = np.concatenate([*own, np.zeros(0, np.int64)])
        owner = np.repeat(np.arange(len(own)), sizes)
        # A word of no query met so far is in none of these.
        others = [self._of_text(text) for text in texts]
        numbered = [[self._numbers.get(word, -1) for word in other] for other in others]
        wanted = np.unique([word for row in numbered for word in row if word >= 0])
        holds = np.zeros((len(wanted) + 1, len(texts)))  # the last row: any other word
        for column, row in enumerate(numbered):
            holds[np.searchsorted(wanted, [word for word in row if word >= 0]), column] = 1
        place = np.searchsorted(wanted, flat)
        place[~np.isin(flat, wanted)] = len(wanted)
        shared = np.zeros((len(own), len(texts)))
        there = place < len(wanted)
        np.add.at(shared, owner[there], holds[place[there]])
        either = sizes[:, None] + np.array([len(other) for other in others]) - shared
        return shared / np.maximum(either, 1)

    def sizes(self, numbers: Iterable[int]) -> np.ndarray:
        """How many distinct words each known query has, `[n]`."""
        return np.array([len(self._of_query(int(number))) for number in numbers], np.int32)

    def _words_of_query(self, number: int) -> np.ndarray:
        found = words(self._queries[number])
        return np.array([self._numbers.setdefault(w, len(self._numbers)) for w in found], np.int64)
