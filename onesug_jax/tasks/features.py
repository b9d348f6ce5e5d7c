"""One request -> the encoder's ids, one query -> the decoder's ids.

The order is that of the paper (PAPER.md section 1, x_u = p, H_p, H_u, U):

    <prefix> p <soft> <related1> q1 <related2> q2 .. <history1> h1 <history2> h2 ..
    <profile1> v1 <profile2> .. </s>

The marker of the prefix is always present. The model replaces `<soft>` by the projection of the
enhanced prefix e_p* (section 2.3); a request without e_p* has no `<soft>`. Semantic ids (section
2.4) are written as their tokens. Training (`tasks.examples`) and serving call the same functions,
so both get the same arrays. Numpy only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.items import Items
from onesug_jax.tasks.vocabulary import Vocabulary

if TYPE_CHECKING:
    from onesug_jax.retrieval.related import RelatedQueries

_CACHED_TEXTS = 1 << 18  # queries and profile values repeat; about 100 MB when full


@dataclass(frozen=True)
class Request:
    """The inputs of one request; texts are normalised by `logs.schema`.

    Attributes:
      prefix: the text in the search box.
      history: the user's queries, newest first.
      related: queries related to the prefix, best first.
      profile: static profile values.
      vector: the enhanced prefix e_p*, `[E]`, or None.
      items: the as-of features at the request's moment; None: not computed.

    Examples:
      >>> from onesug_jax import Request
      >>> Request("la", history=("tent",)).history
      ('tent',)
    """

    prefix: str
    history: Sequence[str] = ()
    related: Sequence[str] = ()
    profile: Sequence[str] = ()
    vector: np.ndarray | None = field(default=None, compare=False)
    items: Items | None = field(default=None, compare=False)


def make_requests(
    context: RelatedQueries | None,
    prefixes: Sequence[str],
    histories: Sequence[Sequence[str]],
    profiles: Sequence[Sequence[str]],
) -> list[Request]:
    """Requests of normalised texts, with the related queries and vectors of `context`."""
    related: Sequence[Sequence[str]] = [()] * len(prefixes)
    vectors = None
    if context is not None and len(prefixes):
        related, vectors = context.related(prefixes), context.vectors(prefixes)
    return [
        Request(
            prefix,
            tuple(histories[i]),
            tuple(related[i]),
            tuple(profiles[i]),
            None if vectors is None else vectors[i],
        )
        for i, prefix in enumerate(prefixes)
    ]


@dataclass(frozen=True)
class FeatureSpec:
    """The inputs of the model.

    Attributes:
      input_length: most encoder ids, end token included.
      target_length: most decoder ids, end token included.
      related: most related queries.
      history: most history queries (the paper: ten; more reduced MRR).
      profile: whether the profile is an input.
      soft: whether the enhanced prefix e_p* is an input, as one soft token.
      items: whether candidates and history are items (numbers with counts and ages), so that only
        prefix and profile are text; False: all are text, as in the paper.

    Examples:
      >>> from onesug_jax import FeatureSpec
      >>> FeatureSpec(items=False, history=5).input_length
      144
    """

    input_length: int = 144
    target_length: int = 16
    related: int = 16
    history: int = 10
    profile: bool = True
    soft: bool = True
    items: bool = True

    def __post_init__(self):
        if self.input_length < 8 or self.target_length < 2 or min(self.related, self.history) < 0:
            raise UserError(
                "FeatureSpec: expected input_length >= 8, target_length >= 2, related and "
                "history >= 0; found "
                f"input_length={self.input_length}, target_length={self.target_length}, "
                f"related={self.related}, history={self.history}."
            )


class Featurizer:
    """Requests and queries to ids, within the lengths of `spec`.

    An item that does not fit is left out, never cut. The exception is the prefix: it may fill half
    of the input and retains its last ids, since the user is typing its end. The profile may fill an
    eighth. Related and history queries are then added alternately, best and newest first; a section
    ends before the first item that does not fit. A long target loses its last pieces and retains
    the end token.

    Examples:
      >>> import tempfile
      >>> from onesug_jax import Featurizer, FeatureSpec, Request, Vocabulary
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     vocabulary = Vocabulary.train(iter(["red lamp", "blue tent"]), folder, pieces=320)
      >>> featurizer = Featurizer(vocabulary, FeatureSpec(items=False, soft=False))
      >>> ids = featurizer.inputs(Request("la", history=("tent",)))
      >>> [int(ids[0]) == vocabulary.prefix_id, int(ids[-1]) == vocabulary.eos_id]
      [True, True]
    """

    def __init__(self, vocabulary: Vocabulary, spec: FeatureSpec):
        self.vocabulary = vocabulary
        self.spec = spec
        self._text_ids = functools.lru_cache(maxsize=_CACHED_TEXTS)(vocabulary.encode)

    def inputs(self, request: Request) -> np.ndarray:
        """The encoder's ids of `request`, int32 `[L]` with L <= input_length, end token
        included.
        """
        v, spec = self.vocabulary, self.spec
        out = [v.prefix_id, *self._text_ids(request.prefix)[-(spec.input_length // 2 - 1) :]]
        if spec.soft and request.vector is not None:
            out.append(v.soft_id)
        room = spec.input_length - 1 - len(out)  # without the end token
        profile: list[int] = []
        if spec.profile and request.profile:
            most = min(room, spec.input_length // 8)
            profile = self._section(request.profile, v.item_ids["profile"], most)
        related, history = self._share(
            request.related[: spec.related], request.history[: spec.history], room - len(profile)
        )
        return np.array([*out, *related, *history, *profile, v.eos_id], np.int32)

    def item_input(self, prefix: str, profile: Sequence[str]) -> np.ndarray:
        """The encoder's ids, int32 `[L]`, of a request with items: prefix and profile."""
        v, spec = self.vocabulary, self.spec
        out = [v.prefix_id, *self._text_ids(prefix)[-(spec.input_length // 2 - 1) :]]
        if spec.profile and profile:
            room = min(spec.input_length - 1 - len(out), spec.input_length // 4)
            out += self._section(profile, v.item_ids["profile"], room)
        return np.array([*out, v.eos_id], np.int32)

    def _section(self, texts: Sequence[str], markers: Sequence[int], room: int) -> list[int]:
        """The ids of the first texts that fit into `room` ids, with their markers."""
        out: list[int] = []
        rank = 0
        for text in texts:
            ids = self._text_ids(text)
            if not ids:
                continue
            if len(ids) >= room:
                break
            out.append(markers[min(rank, len(markers) - 1)])
            out += ids
            room -= len(ids) + 1
            rank += 1
        return out

    def _share(
        self, related: Sequence[str], history: Sequence[str], room: int
    ) -> tuple[list[int], list[int]]:
        """The related and the history section; they share `room` ids, one item each in turn."""
        markers = self.vocabulary.item_ids
        sections: tuple[list[int], list[int]] = ([], [])
        active = [
            (sections[0], markers["related"], iter(related)),
            (sections[1], markers["history"], iter(history)),
        ]
        while active:
            unfinished = []
            for out, left, texts in active:
                text = next(texts, None)
                if text is None:
                    continue
                ids = self._text_ids(text)
                if ids:
                    if len(ids) >= room:
                        continue
                    out += [left[0], *ids]
                    room -= len(ids) + 1
                    left = left[1:] or left
                unfinished.append((out, left, texts))
            active = unfinished
        return sections

    def target(self, query: str) -> np.ndarray:
        """The decoder's ids of `query`, int32 `[T]` with T <= target_length, end token included."""
        ids = self._text_ids(query)[: self.spec.target_length - 1]
        return np.array([*ids, self.vocabulary.eos_id], np.int32)

    def targets(self, queries: Sequence[str]) -> np.ndarray:
        """`target` of many queries, int32 `[N, T]`, padded with 0 to the longest."""
        room = self.spec.target_length - 1
        rows = [ids[:room] for ids in self.vocabulary.encode_all(queries)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        width = int(lengths.max(initial=0)) + 1
        out = np.zeros((len(rows), width), np.int32)
        flat = itertools.chain.from_iterable(rows)
        out[np.arange(width) < lengths[:, None]] = np.fromiter(flat, np.int32, lengths.sum())
        out[np.arange(len(rows)), lengths] = self.vocabulary.eos_id
        return out

    def text_input(self, text: str) -> np.ndarray:
        """The encoder's ids of a text without markers, for query -> id tasks."""
        ids = self._text_ids(text)[: self.spec.input_length - 1]
        return np.array([*ids, self.vocabulary.eos_id], np.int32)

    def id_tokens(self, codes: Sequence[int]) -> np.ndarray:
        """The tokens of a semantic id as decoder ids, end token included: `[levels + 1]`."""
        tokens = [self.vocabulary.sid(level, int(code)) for level, code in enumerate(codes)]
        return np.array([*tokens, self.vocabulary.eos_id], np.int32)

    def id_input(self, codes: Sequence[int]) -> np.ndarray:
        """The encoder's ids of a semantic id, after its marker: `[levels + 2]`."""
        return np.concatenate([[self.vocabulary.ids_id], self.id_tokens(codes)]).astype(np.int32)

    def soft(self, requests: Sequence[Request]) -> np.ndarray | None:
        """The vectors of the soft tokens of `requests`, float32 `[B, 1, E]`; None without any.

        The row of a request without a vector is 0, and its ids have no soft token.
        """
        vectors = [request.vector for request in requests]
        if not self.spec.soft or all(vector is None for vector in vectors):
            return None
        width = len(next(vector for vector in vectors if vector is not None))
        out = np.zeros((len(requests), 1, width), np.float32)
        for row, vector in zip(out, vectors, strict=True):
            if vector is not None:
                row[0] = vector
        return out
