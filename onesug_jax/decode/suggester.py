"""The text model's suggestion lists: features, beam search, texts.

Evaluation, the `suggest` stage and the server all use this file, so they show the same lists. It
does not import TensorFlow. Batches have a few fixed shapes (batch sizes and input lengths are
rounded up), so that few programs are compiled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.beam import BeamConfig, BeamResult, beam_search
from onesug_jax.decode.closed_set import ClosedSet, Filter, IndexedQueries
from onesug_jax.decode.replicas import Copies, Replicas, by_row, split_constraint
from onesug_jax.decode.shapes import Shapes, least
from onesug_jax.decode.trie import Constraint, Free, Trie, build_trie
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_query
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding
from onesug_jax.tasks.features import Featurizer, Request
from onesug_jax.tasks.vocabulary import Vocabulary


class Suggestion(NamedTuple):
    """A suggested query, its length-normalised log-probability, and whether the model wrote it, so
    that it was not a candidate.
    """

    text: str
    score: float
    written: bool = False


class Ids(Protocol):
    """The interface of semantic ids; row i is the id of the i-th indexed text.

    Attributes:
      ids: `[N, levels]`.
    """

    ids: np.ndarray

    def numbers(self, codes: Sequence[int]) -> np.ndarray:
        """The numbers of an id's queries, best first."""


def written_query(vocabulary: Vocabulary, sequence: np.ndarray) -> str:
    """The normalised query of decoder ids `[T]`; "" if its byte pieces are not valid UTF-8."""
    text = vocabulary.decode(sequence.tolist())
    return "" if "\ufffd" in text else normalise_query(text)


@functools.partial(jax.jit, static_argnames=("model", "config", "mesh"))
def _search(
    model: Seq2Seq,
    config: BeamConfig,
    mesh: Mesh | None,
    params,
    tokens: jax.Array,
    soft: jax.Array | None,
    constraint: Constraint,
) -> BeamResult:
    def run(shared, rows):
        params, constraint = shared
        tokens, soft, by_request = rows
        constraint = dataclasses.replace(constraint, **by_request)
        result = beam_search(model, params, tokens, constraint, config, soft)
        return dataclasses.replace(result, steps=None)

    shared, by_request = split_constraint(constraint)
    result: BeamResult = by_row(mesh, run, (params, shared), (tokens, soft, by_request))
    return result


class Suggester:
    """Writes suggestion lists with a trained model.

    Args:
      model: the encoder-decoder; params: its parameters.
      featurizer: turns requests into the encoder's ids.
      config: settings of the search; `max_length` is limited to the longest indexed query.
      queries: query -> popularity, the closed set of allowed queries; None: any text.
      must_start: a list has only queries that start with the prefix, if any query does. For a
        prefix that no query starts with (a typo, for example) all queries are allowed.
      ids: the semantic ids of the indexed queries in the order of their texts
        (`semantic_ids.ids`); needs `queries`. The model then writes ids, and each id stands for its
        queries, best first. The search covers all existing ids; the prefix filters the result.
      batch_sizes: sizes that a batch is padded to, ascending.
      shown: which indexed queries may be shown; see `show`.

    Attributes:
      shapes: the shapes that batches are padded to; may be replaced at any time.
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
        shown: Filter | None = None,
    ):
        if list(batch_sizes) != sorted(set(batch_sizes)) or batch_sizes[0] < 1:
            raise UserError(f"batch_sizes = {batch_sizes}: expected ascending sizes from 1 up")
        self._trained = model
        self.model, params = for_decoding(model, params)
        self.replicas = Replicas()
        self.params = self.replicas.copied(params)
        self.featurizer = featurizer
        self.shapes = Shapes.of(batch_sizes, featurizer.spec.input_length)
        vocabulary = featurizer.vocabulary
        text = np.arange(model.config.vocab_size) < vocabulary.pieces
        text[[vocabulary.pad_id, vocabulary.unk_id]] = False
        self._unfiltered: Constraint = Free(jax.numpy.asarray(text))
        self._set: ClosedSet | None = None
        self._ids = ids
        if ids is not None:
            if queries is None:
                raise UserError("lists of semantic ids need the indexed queries: set closed=True")
            texts = sorted(queries)
            counts = np.array([queries[text] for text in texts])
            self._set = ClosedSet(texts, counts, must_start)
            self._codes = np.unique(np.asarray(ids.ids), axis=0)
            sequences = np.stack([featurizer.id_tokens(codes) for codes in self._codes])
            self._unfiltered, self._rank_of_node = build_trie(sequences)
            config = dataclasses.replace(config, max_length=sequences.shape[1])
        elif queries is not None:
            indexed = IndexedQueries.of(queries, featurizer)
            self._set = ClosedSet(indexed.texts, indexed.counts, must_start)
            self._lengths = np.count_nonzero(indexed.tokens, axis=1)
            self._unfiltered, self._rank_of_node = build_trie(indexed.tokens)
            longest = indexed.tokens.shape[1]
            config = dataclasses.replace(config, max_length=min(config.max_length, longest))
        self.config = config
        self.constraint: Copies = self.replicas.copied(self._unfiltered)
        self.show(shown)

    def show(self, shown: Filter | None) -> None:
        """Sets the filter of the indexed queries; None: all are shown. A list that another thread
        is making uses either the old or the new filter.

        Raises:
          UserError: no indexed query passes, or the set is not closed.
        """
        if self._set is None:
            if shown is not None and shown != Filter():
                raise UserError("a filter chooses among indexed queries: set closed=True")
            self.shown = Filter()
            return
        passed = self._set.passing(shown)
        constraint = self._unfiltered
        if self._ids is None:
            assert isinstance(constraint, Trie)
            passed &= self._lengths <= self.config.max_length
            if not passed.all():
                constraint = constraint.showing(passed, self._rank_of_node)
        self._set.shown, self.constraint = passed, self.replicas.copied(constraint)
        self.shown = shown or Filter()

    def __call__(self, requests: Sequence[Request], k: int | None = None) -> list[list[str]]:
        """The texts of `suggest`."""
        return [[s.text for s in suggestions] for suggestions in self.suggest(requests, k)]

    def use(self, params) -> None:
        """Replaces the parameters of the model; nothing is compiled again."""
        self.params = self.replicas.copied(for_decoding(self._trained, params)[1])

    def suggest(self, requests: Sequence[Request], k: int | None = None) -> list[list[Suggestion]]:
        """One list per request, best first, without duplicates, in the order of the requests.

        Args:
          requests: any number of normalised requests.
          k: maximum length of a list; at most, and by default, `config.returned`.

        Raises:
          UserError: k is larger than `config.returned`, or below 1.
        """
        k = self.config.returned if k is None else k
        if not 1 <= k <= self.config.returned:
            raise UserError(
                f"k = {k}: expected 1 to BeamConfig.returned = {self.config.returned}; "
                "raise --gin.BeamConfig.returned (and beams) for longer lists"
            )
        shapes = self.shapes
        ids = [self.featurizer.inputs(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: len(ids[i]))
        lists: list[list[Suggestion]] = [[] for _ in requests]
        while order:
            count = shapes.next_batch(len(order))
            members, order = order[:count], order[count:]
            batch = [requests[i] for i in members]
            tokens, soft = self._inputs([ids[i] for i in members], batch, shapes)
            result = self._searched(batch, tokens, soft)
            for i, suggestions in zip(members, self._read(result, batch), strict=True):
                lists[i] = suggestions[:k]
        return lists

    def warmup(self, size: int, length: int) -> None:
        """Compiles and runs the program for batches of `size` requests of `length` ids."""
        featurizer, width = self.featurizer, self.model.config.soft_dim
        tokens = np.full((size, length), featurizer.vocabulary.prefix_id, np.int32)
        tokens[:, -1] = featurizer.vocabulary.eos_id
        soft = np.zeros((size, 1, width), np.float32) if width else None
        jax.block_until_ready(self._searched([Request("")] * size, tokens, soft))

    def _inputs(self, ids: list[np.ndarray], requests: list[Request], shapes: Shapes):
        """The encoder's ids of a batch, `[size, L]`, and the vectors of its soft tokens, both
        padded with the first request.
        """
        size = least(shapes.batch_sizes, len(ids))
        tokens = np.zeros((size, least(shapes.lengths, max(map(len, ids)))), np.int32)
        for row, request in zip(tokens, ids, strict=False):
            row[: len(request)] = request
        tokens[len(ids) :] = tokens[0]  # this padding needs no further decoder steps
        soft = None
        if self.model.config.soft_dim:
            soft = np.zeros((size, 1, self.model.config.soft_dim), np.float32)
            vectors = self.featurizer.soft(requests)
            if vectors is not None:
                soft[: len(ids)] = vectors
                soft[len(ids) :] = soft[0]
        return tokens, soft

    def _searched(
        self, requests: list[Request], tokens: np.ndarray, soft: np.ndarray | None
    ) -> BeamResult:
        """The beams of a padded batch, constrained to the queries allowed for its requests."""
        mesh, params, constraint = self.replicas.of(len(tokens), self.params, self.constraint)
        if self._set is not None and self._ids is None:
            intervals = [self._set.interval(request.prefix) for request in requests]
            intervals += intervals[:1] * (len(tokens) - len(requests))
            constraint = constraint.between(np.array(intervals, np.int32))
        return _search(self.model, self.config, mesh, params, tokens, soft, constraint)

    def _read(self, result: BeamResult, requests: list[Request]) -> list[list[Suggestion]]:
        """The texts of finished beams."""
        arrays = jax.device_get((result.scores, result.states, result.sequences))
        rows = list(zip(*arrays, strict=True))[: len(requests)]
        if self._ids is None:
            return [self._texts_of(*row) for row in rows]
        return [
            self._texts_of_ids(scores, states, request.prefix)
            for (scores, states, _), request in zip(rows, requests, strict=True)
        ]

    def _texts_of(self, scores, states, sequences) -> list[Suggestion]:
        """Texts of one request's finished hypotheses; of equal texts the first has the score."""
        scores_of: dict[str, float] = {}
        for score, state, sequence in zip(scores, states, sequences, strict=True):
            if score <= NEG_INF / 2:
                break
            if self._set is not None:
                text = self._set.texts[self._rank_of_node[state]]
            else:
                text = written_query(self.featurizer.vocabulary, sequence)
            if text:
                scores_of.setdefault(text, float(score))
        return [Suggestion(text, score) for text, score in scores_of.items()]

    def _texts_of_ids(self, scores, states, prefix: str) -> list[Suggestion]:
        """The queries of one request's finished ids, the better id first, that are allowed for
        `prefix` and shown. Every query has its id's score.
        """
        assert self._set is not None and self._ids is not None
        low, high = self._set.interval(prefix)
        suggestions: list[Suggestion] = []
        for score, state in zip(scores, states, strict=True):
            if score <= NEG_INF / 2:
                break
            for number in self._ids.numbers(self._codes[self._rank_of_node[state]]).tolist():
                if low <= number < high and self._set.shown[number]:
                    suggestions.append(Suggestion(self._set.texts[number], float(score)))
        return suggestions[: self.config.returned]
