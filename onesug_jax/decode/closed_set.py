"""The set of indexed queries: their sorted texts, their tokens, and a filter of what may be shown.

A shop hides queries with unwanted terms or few searches without training again. `Filter` is applied
to the finished set, so that it can change while serving.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from onesug_jax.decode.blocking import Terms
from onesug_jax.decode.trie import starting_with
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_query
from onesug_jax.tasks.features import Featurizer

_LEAST_COUNT = re.compile(r"least_count\s*=\s*(\d+)")
_PLURALS = re.compile(r"plurals\s*=\s*(yes|no)")


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which indexed queries may be shown. The constructor compiles the blocked terms.

    Attributes:
      blocked: terms that no shown query contains as whole words (anywhere in scripts without
        spaces); spelling is folded, see `blocking`.
      least_count: minimum number of searches of a shown query.
      plurals: block also English plurals and singulars of the terms.
    """

    blocked: tuple[str, ...] = ()
    least_count: int = 0
    plurals: bool = False
    _terms: Terms = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_terms", Terms(self.blocked, self.plurals))

    @classmethod
    def read(cls, path: str | None, least_count: int = 0) -> Filter:
        """Reads a text file with one term a line; empty lines and text after # are ignored. The
        lines `least_count = 5` and `plurals = yes` are settings, which can change while serving.

        Raises:
          UserError: the file is missing or not UTF-8.
        """
        if path is None:
            return cls((), least_count)
        if not os.path.isfile(path):
            raise UserError(f"{path}: expected a file of blocked terms, one a line; found none")
        try:
            with open(path, encoding="utf-8-sig") as file:  # with or without a byte order mark
                lines = [line.partition("#")[0].strip() for line in file]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8, one term a line ({error})") from None
        terms, plurals = [], False
        for line in lines:
            if match := _LEAST_COUNT.fullmatch(line):
                least_count = int(match[1])
            elif match := _PLURALS.fullmatch(line):
                plurals = match[1] == "yes"
            elif term := normalise_query(line):
                terms.append(term)
        return cls(tuple(dict.fromkeys(terms)), least_count, plurals)

    def of(self, texts: Sequence[str], counts: np.ndarray) -> np.ndarray:
        """Whether each query may be shown, `[N]` booleans."""
        shown = np.asarray(counts) >= self.least_count
        if self.blocked:
            shown &= ~np.fromiter(map(self.blocks, texts), bool, len(texts))
        return shown

    def blocks(self, text: str) -> bool:
        """Whether a query contains a blocked term."""
        return self._terms.found_in(text)


@dataclasses.dataclass(frozen=True)
class IndexedQueries:
    """Indexed queries in the order of their texts; all token sequences are distinct.

    Attributes:
      texts: sorted by code point.
      tokens: `[N, T]` target ids, each with its end of sequence, then 0.
      counts: `[N]` searches of each query.
    """

    texts: list[str]
    tokens: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, queries: Mapping[str, int], featurizer: Featurizer) -> IndexedQueries:
        """From normalised queries. Of queries truncated to the same ids it keeps the most searched,
        and of equal counts the first.
        """
        texts = sorted(queries)
        counts = np.fromiter((queries[text] for text in texts), np.int64, len(texts))
        tokens = featurizer.targets(texts)
        order = np.lexsort((np.arange(len(texts)), -counts, *tokens.T[::-1]))
        repeated = np.zeros(len(texts), bool)
        repeated[1:] = (tokens[order][1:] == tokens[order][:-1]).all(axis=1)
        first = np.sort(order[~repeated])
        return cls([texts[i] for i in first], tokens[first], counts[first])


class ClosedSet:
    """The texts that a list may contain, those allowed for a prefix, and those that may be shown.

    Attributes:
      texts: sorted by code point; the rank of a text is its index here.
      shown: `[N]` booleans.
    """

    def __init__(self, texts: list[str], counts: np.ndarray, must_start: bool):
        """`must_start`: if any text starts with the prefix, only such texts are allowed."""
        self.texts, self._counts, self._must_start = texts, counts, must_start
        self.shown = np.ones(len(texts), bool)

    def passing(self, shown: Filter | None) -> np.ndarray:
        """Whether each text passes the filter, `[N]`; None: all pass.

        Raises:
          UserError: no text passes.
        """
        if shown is None:
            return np.ones(len(self.texts), bool)
        passed = shown.of(self.texts, self._counts)
        if not passed.any():
            raise UserError(
                f"none of the {len(self.texts):,} indexed queries passes the filter "
                f"({len(shown.blocked):,} blocked terms, least_count={shown.least_count}): "
                "no list would have a query; block less"
            )
        return passed

    def interval(self, prefix: str) -> tuple[int, int]:
        """Ranks `low <= rank < high` of the texts allowed for this prefix."""
        if self._must_start:
            low, high = starting_with(self.texts, prefix)
            if low < high:
                return low, high
        return 0, len(self.texts)
