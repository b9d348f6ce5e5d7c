"""The queries of the simulated shop with words, shelves, popularity and appeal, as arrays.

They are from the built-in catalogue or from any list of queries, and do not depend on time:
`timeline` changes the popularity, `searches` draws from it.
"""

from __future__ import annotations

import collections
import functools
import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs import schema
from onesug_jax.logs.simulate import catalogue

_MAX_WORDS = 6
_MAX_SHELVES = 60
_MAX_CHARACTERS = 100
# Words after one of these describe the thing named before it.
_AFTER_HEAD = frozenset("for with without in of from to para de con sin und mit für pour".split())


@dataclass
class World:
    """Q queries made of `words` different words, on `shelves` shelves.

    Groups of queries are numbered: one for each word (the queries with it), then one for each
    shelf, then `everything`. A query has no word twice.
    """

    queries: list[str]
    words_of: np.ndarray  # [Q, W] word numbers, padded with -1
    shelf: np.ndarray  # [Q]
    words: int
    shelves: int
    popularity: np.ndarray  # [Q] sums to 1
    appeal: np.ndarray  # [Q] log-odds of a click on an item
    intent: np.ndarray  # [Q] log-odds of an order after it
    leaning: np.ndarray  # [3, words] log-odds of a word by gender (F, M, unknown)
    leaning_pull: np.ndarray = field(init=False)  # [3, Q] exp of the sum over a query's words
    length: np.ndarray = field(init=False)  # [Q] words
    characters: np.ndarray = field(init=False)  # [Q]
    wide: np.ndarray = field(init=False)  # [Q] bool: without spaces, in a large alphabet
    rarity: np.ndarray = field(init=False)  # [words] - log of the share of queries with the word
    member: np.ndarray = field(init=False)  # [M] queries of all groups, concatenated
    ends: np.ndarray = field(init=False)  # [groups + 1] start of each group in `member`

    def __post_init__(self):
        size = len(self.queries)
        present = self.words_of >= 0
        self.length = present.sum(1)
        self.leaning_pull = np.exp((self.leaning[:, self.words_of] * present).sum(2))
        self.characters = np.array([len(text) for text in self.queries])
        self.wide = np.array([schema.is_wide(text) for text in self.queries])
        query, column = np.nonzero(present)
        shelf = self.words + self.shelf
        group = np.concatenate([self.words_of[query, column], shelf, [self.everything] * size])
        member = np.concatenate([query, np.arange(size), np.arange(size)])
        sizes = np.bincount(group, minlength=self.everything + 1)
        self.rarity = -np.log(np.maximum(sizes[: self.words], 1) / size)
        self.member = member[np.lexsort((member, group))]
        self.ends = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def everything(self) -> int:
        """Number of the group of all queries."""
        return self.words + self.shelves

    def members(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All members of N groups: place in `group` [E] and query [E]."""
        size = self.ends[group + 1] - self.ends[group]
        owner = np.repeat(np.arange(len(group)), size)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
        return owner, self.member[np.repeat(self.ends[group], size) + within]


def build_world(
    rng: np.random.Generator, *, queries: str | None, language: str, distinct: int
) -> World:
    """The shop: up to `distinct` queries of the catalogue or of the file `queries`.

    Raises UserError for an unknown language or a file that cannot be read or holds too few queries.
    """
    source = _from_catalogue(language) if queries is None else _from_file(queries)
    texts, parts, shelves, genders = source
    texts, parts, shelves = _choose(rng, texts, parts, shelves, distinct)
    vocabulary: dict[str, int] = {}
    words_of = np.full((len(texts), _MAX_WORDS), -1, np.int32)
    for row, words in enumerate(parts):
        for column, word in enumerate(list(dict.fromkeys(words))[:_MAX_WORDS]):
            words_of[row, column] = vocabulary.setdefault(word, len(vocabulary))
    names = {name: number for number, name in enumerate(sorted(set(shelves)))}
    shelf = np.array([names[name] for name in shelves])
    size = len(texts)
    leaning = np.zeros((3, len(vocabulary)))
    for word, gender in genders.items():
        if word in vocabulary:
            leaning[:, vocabulary[word]] = (1.0, -2.0, 0.0) if gender == "F" else (-2.0, 1.0, 0.0)
    popularity = (np.arange(size) + 6.0) ** -1.0
    present = words_of >= 0
    value = rng.normal(0, 0.6, len(vocabulary))
    extra = present.sum(1) - present.sum(1).mean()
    intent = rng.normal(0, 1.4, size) + (value[words_of] * present).sum(1) + 0.3 * extra
    appeal = rng.normal(0, 0.7, size) - 0.1 * extra
    return World(
        texts, words_of, shelf, len(vocabulary), len(names), popularity / popularity.sum(),
        appeal, intent + rng.normal(0, 0.5, len(names))[shelf], leaning,
    )  # fmt: skip


def _choose(rng, texts, parts, shelves, distinct: int):
    """The queries of the shop, most popular first; short ones tend to be popular."""
    size = np.array([len(text) for text in texts], float)
    score = rng.gumbel(0, 1, len(texts)) - 8.0 * size / size.mean()
    best = np.argsort(-score, kind="stable")[:distinct]
    return [texts[i] for i in best], [parts[i] for i in best], [shelves[i] for i in best]


@functools.cache  # a check, the run after it, and dry runs in one process share the result
def _from_catalogue(language: str):
    texts: dict[str, tuple[tuple[str, ...], str]] = {}
    for category in catalogue.categories(language):
        for words in catalogue.phrases(category, language):
            text = schema.normalise_query(catalogue.write_phrase(words, language))
            tokens = text.split()
            if len(set(tokens)) == len(tokens):
                texts.setdefault(text, (words, category.name))
    parts = [words for words, _ in texts.values()]
    return list(texts), parts, [shelf for _, shelf in texts.values()], catalogue.LEANS


def _from_file(path: str):
    """The queries of a file, their words, and their shelves, which head words name."""
    texts = list(dict.fromkeys(_lines(path)))
    if len(texts) < 20:
        raise UserError(
            f"{path}: expected at least 20 different queries, one a line, found {len(texts)}; "
            "give a longer list"
        )
    pairs = collections.Counter(pair for text in texts for pair in set(schema.split_words(text)))
    parts = []
    for text in texts:
        pieces = [
            piece for piece in dict.fromkeys(schema.split_words(text)) if piece not in _AFTER_HEAD
        ]
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


def _head(text: str) -> str:
    """The last word before "for", "with" ..; of a wide text, the last two characters."""
    if schema.is_wide(text):
        return text[-2:]
    words = text.split()
    for at, word in enumerate(words):
        if at and word in _AFTER_HEAD:
            return words[at - 1]
    return words[-1]
