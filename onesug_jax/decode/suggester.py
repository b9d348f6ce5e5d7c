"""From requests to suggestion lists: features in, beam search, text out.

The one place where vocabulary, features, model and beams meet; evaluation, the `suggest` stage and
the server all use it, so they show the same lists. No TensorFlow here. Requests are served in a few
fixed shapes (batch sizes, input lengths rounded up), so that few programs are compiled.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from onesug_jax.decode.beam import BeamConfig, BeamResult, beam_search
from onesug_jax.decode.trie import NEVER, Constraint, Free, TextRanks, build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.tasks.features import Featurizer, Request

_LENGTH_STEP = 32  # input lengths are rounded up to multiples of this


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One suggested query and its length-normalised log-probability."""

    text: str
    score: float


class Ids(Protocol):
    """What is asked of semantic ids; row i is the id of the i-th known text in order.

    Attributes:
      ids: `[N, levels]`.
    """

    ids: np.ndarray

    def numbers(self, codes: Sequence[int]) -> np.ndarray:
        """The queries under an id, best first."""


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _search(
    model: Seq2Seq,
    config: BeamConfig,
    params,
    tokens: jax.Array,
    soft: jax.Array | None,
    constraint: Constraint,
) -> BeamResult:
    return beam_search(model, params, tokens, constraint, config, soft)


class Suggester:
    """Writes suggestion lists with a trained model.

    Args:
      model: the encoder-decoder; params: its parameters.
      featurizer: turns requests into the encoder's ids.
      config: how to search; `max_length` is cut to the longest known query.
      queries: query -> popularity, the closed set a list is kept to; None writes freely.
      must_start: keep lists to queries that start with the prefix, wherever one does; a prefix no
        query starts with (a typo, say) may get any query.
      ids: the semantic ids of the known queries in the order of their texts
        (`represent.semantic_ids`): the model then writes ids, and each is read as the queries under
        it, best first. Needs `queries`.
      batch_sizes: sizes a batch is filled up to, ascending.
    """

    def __init__(
        self,
        model: Seq2Seq,
        params,
        featurizer: Featurizer,
        config: BeamConfig,
        *,
        queries: Mapping[str, int] | None = None,
        must_start: bool = True,
        ids: Ids | None = None,
        batch_sizes: Sequence[int] = (1, 8, 32),
    ):
        if list(batch_sizes) != sorted(set(batch_sizes)) or batch_sizes[0] < 1:
            raise UserError(f"batch_sizes = {batch_sizes}: expected ascending sizes from 1 up")
        self.model, self.params, self.featurizer = model, params, featurizer
        self.batch_sizes, self.must_start = tuple(batch_sizes), must_start
        vocabulary = featurizer.vocabulary
        text = np.arange(model.config.vocab_size) < vocabulary.pieces
        text[[vocabulary.pad_id, vocabulary.unk_id]] = False
        self.constraint: Constraint = Free(jax.numpy.asarray(text))
        self._texts: list[str] = []
        self._ids = ids
        if ids is not None:
            if queries is None:
                raise UserError("lists of semantic ids need the known queries: set closed=True")
            self._texts = sorted(queries)
            self._ranks = TextRanks(self._texts)
            codes = np.unique(np.asarray(ids.ids), axis=0)
            sequences = [tuple(featurizer.id_tokens(row).tolist()) for row in codes]
            self.constraint, self._rank_of_node = build_trie(sequences)
            self._codes = codes
            config = dataclasses.replace(config, max_length=len(sequences[0]))
        elif queries is not None:
            sequences = _distinct_sequences(queries, featurizer)
            self._texts = list(sequences)
            self._ranks = TextRanks(self._texts)
            self.constraint, self._rank_of_node = build_trie(list(sequences.values()))
            longest = max(map(len, sequences.values()))
            config = dataclasses.replace(config, max_length=min(config.max_length, longest))
        self.config = config

    def __call__(self, requests: Sequence[Request], k: int | None = None) -> list[list[str]]:
        """The texts of `suggest`: one list a request, best first."""
        return [[s.text for s in found] for found in self.suggest(requests, k)]

    def suggest(self, requests: Sequence[Request], k: int | None = None) -> list[list[Suggestion]]:
        """One list a request, best first, without duplicates, in the order of the requests.

        Args:
          requests: normalised requests, any number.
          k: most suggestions a list; at most, and by default, `config.returned`.

        Raises:
          UserError: k is larger than the search returns.
        """
        k = self.config.returned if k is None else k
        if not 1 <= k <= self.config.returned:
            raise UserError(
                f"k = {k}: expected 1 to BeamConfig.returned = {self.config.returned}; "
                "raise --gin.BeamConfig.returned (and beams) for longer lists"
            )
        ids = [self.featurizer.inputs(request) for request in requests]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        lists: list[list[Suggestion]] = [[] for _ in requests]
        largest = self.batch_sizes[-1]
        for start in range(0, len(order), largest):
            chosen = order[start : start + largest]
            found = self._batch([ids[i] for i in chosen], [requests[i] for i in chosen])
            for i, suggestions in zip(chosen, found, strict=True):
                lists[i] = suggestions[:k]
        return lists

    def _batch(self, ids: list[np.ndarray], requests: list[Request]) -> list[list[Suggestion]]:
        """Lists of one batch of at most the largest batch size."""
        prefixes = [request.prefix for request in requests]
        size = self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(ids))]
        length = -(-max(map(len, ids)) // _LENGTH_STEP) * _LENGTH_STEP
        length = min(length, self.featurizer.spec.input_length)
        tokens = np.zeros((size, length), np.int32)
        for row, request in zip(tokens, ids, strict=False):
            row[: len(request)] = request
        tokens[len(ids) :] = tokens[0]  # a filler that costs no further decoder positions
        soft = None
        if self.model.config.soft_dim:
            soft = np.zeros((size, 1, self.model.config.soft_dim), np.float32)
            given = self.featurizer.soft(requests)
            if given is not None:
                soft[: len(ids)] = given
                soft[len(ids) :] = soft[0]
        constraint = self.constraint
        intervals = [self._interval(prefix) for prefix in prefixes] if self._texts else []
        if intervals and self._ids is None:
            intervals += intervals[:1] * (size - len(ids))
            constraint = constraint.between(np.array(intervals, np.int32))
        found = _search(self.model, self.config, self.params, tokens, soft, constraint)
        scores, states, sequences = jax.device_get((found.scores, found.states, found.sequences))
        if self._ids is not None:
            return [self._texts_of_ids(scores[b], states[b], intervals[b]) for b in range(len(ids))]
        return [self._texts_of(scores[b], states[b], sequences[b]) for b in range(len(ids))]

    def _interval(self, prefix: str) -> tuple[int, int]:
        """Ranks of the queries this prefix may get."""
        if self.must_start:
            low, high = self._ranks.starting_with(prefix)
            if low < high:
                return low, high
        return 0, len(self._texts)

    def _texts_of(self, scores, states, sequences) -> list[Suggestion]:
        """Texts of one request's finished hypotheses; the better of two alike is kept."""
        found: dict[str, float] = {}
        for score, state, sequence in zip(scores, states, sequences, strict=True):
            if score <= NEVER / 2:
                break
            if self._texts:
                text = self._texts[self._rank_of_node[state]]
            else:
                text = " ".join(self.featurizer.vocabulary.decode(sequence.tolist()).split())
            if text:
                found.setdefault(text, float(score))
        return [Suggestion(text, score) for text, score in found.items()]

    def _texts_of_ids(self, scores, states, interval: tuple[int, int]) -> list[Suggestion]:
        """The queries under one request's finished ids, the better id first, within `interval`.

        Every query of an id has the id's score.
        """
        found: list[Suggestion] = []
        for score, state in zip(scores, states, strict=True):
            if score <= NEVER / 2:
                break
            for number in self._ids.numbers(self._codes[self._rank_of_node[state]]).tolist():
                if interval[0] <= number < interval[1]:
                    found.append(Suggestion(self._texts[number], float(score)))
        return found[: self.config.returned]


def _distinct_sequences(
    queries: Mapping[str, int], featurizer: Featurizer
) -> dict[str, tuple[int, ...]]:
    """Target ids of every query, by text. Of queries cut to the same ids the most popular stays."""
    first: dict[tuple[int, ...], str] = {}
    for query in sorted(queries):
        ids = tuple(featurizer.target(query).tolist())
        held = first.get(ids)
        if held is None or queries[query] > queries[held]:
            first[ids] = query
    return {query: ids for ids, query in sorted(first.items(), key=lambda item: item[1])}
