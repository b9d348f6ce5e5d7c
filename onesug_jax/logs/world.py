"""What the simulated shop sells: queries with words, shelves, popularity and worth, as arrays.

Built from the built-in catalogue or from any list of queries. `logs.simulate` lets people loose in
it.
"""

from __future__ import annotations

import collections
import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs import catalogue, schema

_MAX_WORDS = 6
_MAX_SHELVES = 60
_MAX_CHARACTERS = 100
# What stands after one of these describes the thing named before it.
_AFTER_HEAD = frozenset("for with without in of from to para de con sin und mit für pour".split())


@dataclass
class World:
    """Q queries made of `words` different words, on `shelves` shelves; both are groups of them."""

    queries: list[str]
    words_of: np.ndarray  # [Q, W] word numbers, padded with -1
    shelf: np.ndarray  # [Q]
    words: int
    shelves: int
    popularity: np.ndarray  # [Q] sums to 1
    drift: np.ndarray  # [days, Q] log-odds added to popularity on a day
    appeal: np.ndarray  # [Q] log-odds of a click on an item
    intent: np.ndarray  # [Q] log-odds of an order after it
    leaning: np.ndarray  # [3, words] log-odds of a word by gender (F, M, unknown)
    query_leaning: np.ndarray = field(init=False)  # [3, Q] the same summed over a query's words
    length: np.ndarray = field(init=False)  # [Q] words
    characters: np.ndarray = field(init=False)  # [Q]
    wide: np.ndarray = field(init=False)  # [Q] bool: written without spaces, in large alphabets
    rarity: np.ndarray = field(init=False)  # [words] - log of the share of queries that hold it

    def __post_init__(self):
        present = self.words_of >= 0
        self.length = present.sum(1)
        self.query_leaning = (self.leaning[:, self.words_of] * present).sum(2)
        self.characters = np.array([len(text) for text in self.queries])
        self.wide = np.array([_is_wide(text) for text in self.queries])
        query, column = np.nonzero(present)
        group = np.concatenate([self.words_of[query, column], self.words + self.shelf])
        member = np.concatenate([query, np.arange(len(self.queries))])
        order = np.lexsort((member, group))
        size = np.bincount(group, minlength=self.words + self.shelves)
        self.rarity = -np.log(np.maximum(size[: self.words], 1) / len(self.queries))
        self._member = member[order]
        self._ends = np.concatenate([[0], np.cumsum(size)])
        self._mass = np.concatenate([[0.0], np.cumsum(self.popularity[member[order]])])

    def draw(self, rng: np.random.Generator, group: np.ndarray, tried: int) -> np.ndarray:
        """`tried` queries of each row's group by popularity, with repeats: [N] -> [N, tried]."""
        first, last = self._ends[group], self._ends[group + 1]
        low, high = self._mass[first], self._mass[last]
        at = low[:, None] + rng.random((len(group), tried)) * (high - low)[:, None]
        found = np.searchsorted(self._mass, at, side="right") - 1
        return self._member[np.clip(found, first[:, None], last[:, None] - 1)]


def build_world(
    rng: np.random.Generator, *, queries: str | None, language: str, distinct: int, days: int
) -> World:
    """The shop for `days` days: up to `distinct` queries of the catalogue or the file `queries`.

    Raises UserError for an unknown language or a file that cannot be read or holds too few queries.
    """
    source = _from_catalogue(language) if queries is None else _from_file(queries)
    texts, parts, shelves, lean = source
    texts, parts, shelves, rank = _choose(rng, texts, parts, shelves, distinct)
    vocabulary: dict[str, int] = {}
    words_of = np.full((len(texts), _MAX_WORDS), -1, np.int64)
    for row, words in enumerate(parts):
        for column, word in enumerate(words[:_MAX_WORDS]):
            words_of[row, column] = vocabulary.setdefault(word, len(vocabulary))
    names = {name: number for number, name in enumerate(sorted(set(shelves)))}
    shelf = np.array([names[name] for name in shelves])
    size = len(texts)
    leaning = np.zeros((3, len(vocabulary)))
    for word, gender in lean.items():
        if word in vocabulary:
            leaning[:, vocabulary[word]] = (1.0, -2.0, 0.0) if gender == "F" else (-2.0, 1.0, 0.0)
    popularity = (rank + 6.0) ** -0.95
    # Interest wanders from day to day; a few queries have their week.
    drift = np.cumsum(rng.normal(0, 0.12, (days, size)), axis=0).astype(np.float32)
    fashion = np.flatnonzero(rng.random(size) < 0.03)
    middle = rng.uniform(0, days, len(fashion))
    drift[:, fashion] += 2.0 * np.exp(-(((np.arange(days)[:, None] - middle) / 3.0) ** 2))
    present = words_of >= 0
    worth = rng.normal(0, 0.6, len(vocabulary))
    extra = present.sum(1) - present.sum(1).mean()
    intent = rng.normal(0, 1.4, size) + (worth[words_of] * present).sum(1) + 0.3 * extra
    appeal = rng.normal(0, 0.7, size) - 0.1 * extra
    return World(
        texts, words_of, shelf, len(vocabulary), len(names), popularity / popularity.sum(), drift,
        appeal, intent + rng.normal(0, 0.5, len(names))[shelf], leaning,
    )  # fmt: skip


def _choose(rng, texts, parts, shelves, distinct: int):
    """The queries the shop knows and the popularity rank of each, short ones first by tendency."""
    size = np.array([len(text) for text in texts], float)
    score = rng.gumbel(0, 1, len(texts)) - 8.0 * size / size.mean()
    best = np.argsort(-score, kind="stable")[:distinct]
    rank = np.arange(len(best), dtype=float)
    return [texts[i] for i in best], [parts[i] for i in best], [shelves[i] for i in best], rank


def _from_catalogue(language: str):
    known: dict[str, tuple[tuple[str, ...], str]] = {}
    for category in catalogue.categories(language):
        for words in catalogue.phrases(category, language):
            text = schema.normalise_query(catalogue.write_phrase(words, language))
            tokens = text.split()
            if len(set(tokens)) == len(tokens):
                known.setdefault(text, (words, category.name))
    parts = [words for words, _ in known.values()]
    return list(known), parts, [shelf for _, shelf in known.values()], catalogue.LEANS


def _from_file(path: str):
    """Queries of a file, their words, and shelves named by head words."""
    texts = list(dict.fromkeys(_lines(path)))
    if len(texts) < 20:
        raise UserError(
            f"{path}: expected at least 20 different queries, one a line, found {len(texts)}; "
            "give a longer list"
        )
    pairs = collections.Counter(pair for text in texts for pair in set(_pieces(text)))
    parts = []
    for text in texts:
        pieces = [piece for piece in dict.fromkeys(_pieces(text)) if piece not in _AFTER_HEAD]
        shared = [piece for piece in pieces if pairs[piece] > 1]
        parts.append(tuple(shared or pieces or [text]))
    heads = [_head(text) for text in texts]
    large = {head for head, _ in collections.Counter(heads).most_common(_MAX_SHELVES)}
    ordered = sorted(large)
    shelves = [h if h in large else ordered[zlib.crc32(h.encode()) % len(ordered)] for h in heads]
    return texts, parts, shelves, {}


def _lines(path: str) -> Iterator[str]:
    if not os.path.isfile(path):
        raise UserError(
            f"simulate queries: expected a text file, one query a line, found no file {path}"
        )
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                text = schema.normalise_query(line)
                if 0 < len(text) <= _MAX_CHARACTERS:
                    yield text
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: expected UTF-8 text, one query a line (or .gz of it), found {error}"
        ) from error


def _is_wide(text: str) -> bool:
    return sum(ord(c) > 0x2E7F for c in text) * 2 > len(text)


def _pieces(text: str) -> list[str]:
    """Words; where a language writes none apart, every two neighbouring characters."""
    if not _is_wide(text):
        return text.split()
    compact = text.replace(" ", "")
    return [compact[i : i + 2] for i in range(max(1, len(compact) - 1))]


def _head(text: str) -> str:
    """What is wanted: the last word before "for", "with" ...; the last two wide characters."""
    if _is_wide(text):
        return text[-2:]
    words = text.split()
    for at, word in enumerate(words):
        if at and word in _AFTER_HEAD:
            return words[at - 1]
    return words[-1]
