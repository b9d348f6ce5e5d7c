"""The set of indexed queries: their texts and tokens in order, and which of them may be shown.

A shop hides queries without training anything anew: terms it does not want to see, queries hardly
anybody searched. `Filter` is applied to the finished set, so that it can be changed while serving.
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
    """Which indexed queries may be shown. Its terms are made ready to be found when it is made.

    Attributes:
      blocked: terms no shown query may hold, as whole words, or anywhere in scripts without spaces;
        spelling is folded, see `blocking`.
      least_count: how often a shown query was searched at least.
      plurals: English plurals and singulars of the terms are blocked too.
    """

    blocked: tuple[str, ...] = ()
    least_count: int = 0
    plurals: bool = False
    _terms: Terms = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_terms", Terms(self.blocked, self.plurals))

    @classmethod
    def read(cls, path: str | None, least_count: int = 0) -> Filter:
        """With the terms of a text file: one a line; empty lines and those after # are left out.
        Lines `least_count = 5` and `plurals = yes` are settings: they can change while serving.

        Raises:
          UserError: there is no such file, or it is not UTF-8.
        """
        if path is None:
            return cls((), least_count)
        if not os.path.isfile(path):
            raise UserError(f"{path}: expected a file of blocked terms, one a line; found none")
        try:
            with open(path, encoding="utf-8-sig") as file:  # with a byte order mark or without
                lines = [line.partition("#")[0].strip() for line in file]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8, one term a line ({error})") from None
        terms, plurals = [], False
        for line in lines:
            if found := _LEAST_COUNT.fullmatch(line):
                least_count = int(found[1])
            elif found := _PLURALS.fullmatch(line):
                plurals = found[1] == "yes"
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
        """Whether a query holds a blocked term."""
        return self._terms.found_in(text)


@dataclasses.dataclass(frozen=True)
class IndexedQueries:
    """Indexed queries in the order of their texts, no two of which look alike.

    Attributes:
      texts: sorted by code point.
      tokens: `[N, T]` target ids, each with its end of sequence, then 0.
      counts: `[N]` how often each was searched.
    """

    texts: list[str]
    tokens: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, queries: Mapping[str, int], featurizer: Featurizer) -> IndexedQueries:
        """Of normalised queries that are cut to the same ids, the most searched stays (of equals
        the first).
        """
        texts = sorted(queries)
        counts = np.fromiter((queries[text] for text in texts), np.int64, len(texts))
        tokens = featurizer.targets(texts)
        order = np.lexsort((np.arange(len(texts)), -counts, *tokens.T[::-1]))
        alike = np.zeros(len(texts), bool)
        alike[1:] = (tokens[order][1:] == tokens[order][:-1]).all(axis=1)
        first = np.sort(order[~alike])
        return cls([texts[i] for i in first], tokens[first], counts[first])


class ClosedSet:
    """The texts a list is held to: which of them a prefix may get, and which may be shown.

    Attributes:
      texts: sorted by code point; a text's rank is its place here.
      shown: `[N]` booleans.
    """

    def __init__(self, texts: list[str], counts: np.ndarray, must_start: bool):
        """`must_start`: a prefix that texts start with gets none but those."""
        self.texts, self._counts, self._must_start = texts, counts, must_start
        self.shown = np.ones(len(texts), bool)

    def passing(self, shown: Filter | None) -> np.ndarray:
        """Whether each text passes the filter, `[N]`; None: all do.

        Raises:
          UserError: none does.
        """
        if shown is None:
            return np.ones(len(self.texts), bool)
        passed = shown.of(self.texts, self._counts)
        if not passed.any():
            raise UserError(
                f"none of the {len(self.texts):,} indexed queries passes the filter "
                f"({len(shown.blocked):,} blocked terms, least_count={shown.least_count}): "
                "nothing could be suggested; block less"
            )
        return passed

    def interval(self, prefix: str) -> tuple[int, int]:
        """Ranks `low <= rank < high` of the texts this prefix may get."""
        if self._must_start:
            low, high = starting_with(self.texts, prefix)
            if low < high:
                return low, high
        return 0, len(self.texts)
