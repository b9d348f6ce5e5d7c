"""From requests to suggestion lists: features in, beams or scores, text out.

The one place where vocabulary, features, model and beams meet; evaluation, the `suggest` stage and
the server all use it, so in the same mode they show the same lists. No TensorFlow here. Requests
are served in a few fixed shapes (batch sizes, input lengths and trees rounded up), so that few
programs are compiled.

Three modes: "beam" writes the list; "score" ranks the candidates that requests bring, in one pass
(`score.py`); "hybrid" does both, with fewer and shorter beams, and lists the best of either. Where
no more queries than there are beams start with the prefix, beams would hold all of them to the end,
so in every mode they are scored instead: the same list, sooner.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from onesug_jax.arrays import NodeScores
from onesug_jax.decode.beam import BeamConfig, BeamResult, beam_search, read_requests, search
from onesug_jax.decode.grouping import Groups
from onesug_jax.decode.known import ClosedSet, Filter, KnownQueries
from onesug_jax.decode.pools import Pool, Pools
from onesug_jax.decode.score import (
    MODES,
    ScoreConfig,
    Trees,
    score_trees,
    side_by_side,
)
from onesug_jax.decode.shapes import LEAST_NODES, Shapes, least
from onesug_jax.decode.trie import NEVER, Constraint, Free, Trie, build_trie
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_query
from onesug_jax.model.seq2seq import Seq2Seq, for_decoding
from onesug_jax.tasks.features import Featurizer, Request


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One suggested query, its length-normalised log-probability, and whether no candidate had it:
    the model wrote it.
    """

    text: str
    score: float
    written: bool = False


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


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _scored(
    model: Seq2Seq, config: BeamConfig, params, tokens: jax.Array, soft: jax.Array | None, trees
) -> NodeScores:
    read = read_requests(model, params, tokens, soft)
    return score_trees(model, params, read, trees, config.alpha)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _both(
    model: Seq2Seq,
    config: BeamConfig,
    params,
    tokens: jax.Array,
    soft: jax.Array | None,
    constraint: Constraint,
    trees: Trees,
) -> tuple[NodeScores, BeamResult]:
    read = read_requests(model, params, tokens, soft)
    scores = score_trees(model, params, read, trees, config.alpha)
    return scores, search(model, params, read, constraint, config)


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
        (`represent.semantic_ids`): the model then writes, or scores, ids in the stead of texts, and
        each is read as the queries under it, best first. Needs `queries`. Beams go through all ids
        that exist, and only then is a list cut to what starts with the prefix; candidates are
        scored without that loss.
      batch_sizes: sizes a batch is filled up to, ascending.
      mode: "beam", "score" or "hybrid", where `suggest` is not told another.
      scoring: what the latter two look at.
      shown: which known queries may be shown; see `show`.
      groups: how many of one kind may lead a list; None: the scores alone decide.

    Attributes:
      shapes: what batches are filled up to; may be exchanged at any time.
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
        mode: str = "beam",
        scoring: ScoreConfig | None = None,
        shown: Filter | None = None,
        groups: Groups | None = None,
    ):
        self._groups = groups
        self.mode, self.scoring = _known_mode(mode), scoring or ScoreConfig()
        if list(batch_sizes) != sorted(set(batch_sizes)) or batch_sizes[0] < 1:
            raise UserError(f"batch_sizes = {batch_sizes}: expected ascending sizes from 1 up")
        self.model, self.params = for_decoding(model, params)
        self.featurizer = featurizer
        self.shapes = Shapes.of(batch_sizes, featurizer.spec.input_length)
        vocabulary = featurizer.vocabulary
        text = np.arange(model.config.vocab_size) < vocabulary.pieces
        text[[vocabulary.pad_id, vocabulary.unk_id]] = False
        self.constraint: Constraint = Free(jax.numpy.asarray(text))
        self._set: ClosedSet | None = None
        targets: np.ndarray | None = None
        self._ids = ids
        if ids is not None:
            if queries is None:
                raise UserError("lists of semantic ids need the known queries: set closed=True")
            texts = sorted(queries)
            counts = np.array([queries[text] for text in texts])
            self._set = ClosedSet(texts, counts, must_start)
            self._codes, row = np.unique(np.asarray(ids.ids), axis=0, return_inverse=True)
            sequences = np.stack([featurizer.id_tokens(codes) for codes in self._codes])
            targets = sequences[row.reshape(-1)]
            self.constraint, self._rank_of_node = build_trie(sequences)
            config = dataclasses.replace(config, max_length=sequences.shape[1])
        elif queries is not None:
            known = KnownQueries.of(queries, featurizer)
            self._set = ClosedSet(known.texts, known.counts, must_start)
            targets = known.tokens
            self.constraint, self._rank_of_node = build_trie(known.tokens)
            longest = known.tokens.shape[1]
            config = dataclasses.replace(config, max_length=min(config.max_length, longest))
        self.config = config
        self._whole = self.constraint
        self._pools = Pools(self._set, targets, featurizer, config, self.scoring)
        self.show(shown)
        beams = min(self.scoring.beams, config.beams)
        self._short = dataclasses.replace(
            config,
            beams=beams,
            returned=min(beams, config.returned),
            max_length=min(self.scoring.max_length, config.max_length),
        )

    @property
    def candidates(self) -> int:
        """How many candidates a request should bring for the configured mode
        (`make_requests`).
        """
        return 0 if self.mode == "beam" else self.scoring.candidates

    def show(self, shown: Filter | None) -> None:
        """From now on, shows only those of the known queries that pass; None: all. Lists being
        made elsewhere are made by the old filter or by the new one.

        Raises:
          UserError: no known query passes, or the set is open.
        """
        if self._set is None:
            if shown is not None and shown != Filter():
                raise UserError("a filter chooses among known queries: set closed=True")
            self.shown = Filter()
            return
        passed = self._set.passing(shown)
        constraint = self._whole
        if self._ids is None:
            assert self._pools.targets is not None and isinstance(self._whole, Trie)
            lengths = np.count_nonzero(self._pools.targets, axis=1)
            passed &= lengths <= self.config.max_length
            if not passed.all():
                constraint = self._whole.showing(passed, self._rank_of_node)
        self._set.shown, self.constraint = passed, constraint
        self.shown = shown or Filter()

    def __call__(self, requests: Sequence[Request], k: int | None = None) -> list[list[str]]:
        """The texts of `suggest`: one list a request, best first."""
        return [[s.text for s in found] for found in self.suggest(requests, k)]

    def suggest(
        self, requests: Sequence[Request], k: int | None = None, mode: str | None = None
    ) -> list[list[Suggestion]]:
        """One list a request, best first, without duplicates, in the order of the requests.

        Args:
          requests: normalised requests, any number.
          k: most suggestions a list; at most, and by default, `config.returned`.
          mode: "beam", "score" or "hybrid"; by default the configured one. A request without
            candidates that it may be answered with is answered by beams.

        Raises:
          UserError: k is larger than the search returns, or the mode is unknown.
        """
        k = self.config.returned if k is None else k
        if not 1 <= k <= self.config.returned:
            raise UserError(
                f"k = {k}: expected 1 to BeamConfig.returned = {self.config.returned}; "
                "raise --gin.BeamConfig.returned (and beams) for longer lists"
            )
        mode = self.mode if mode is None else _known_mode(mode)
        shapes = self.shapes
        ids = [self.featurizer.inputs(request) for request in requests]
        pools = [self._pools.of(request, mode, shapes) for request in requests]
        ways: dict[str, list[int]] = {}
        for i, pool in enumerate(pools):
            way = "beam" if pool is None else "score" if pool.complete else mode
            ways.setdefault(way, []).append(i)
        lists: list[list[Suggestion]] = [[] for _ in requests]
        for way, order in ways.items():
            nodes = {i: shapes.room(p.nodes) if (p := pools[i]) else 1 for i in order}
            order.sort(key=lambda i: (nodes[i], len(ids[i])))
            while order:
                # Larger trees further on would have all of the batch filled up to them.
                alike = sum(nodes[i] == nodes[order[0]] for i in order)
                many = shapes.together(nodes[order[0]], alike)
                chosen, order = order[:many], order[many:]
                batch = [requests[i] for i in chosen]
                tokens, soft = self._inputs([ids[i] for i in chosen], batch, shapes)
                if way == "beam":
                    found = self._written(tokens, soft, batch)
                else:
                    few, room = [p for i in chosen if (p := pools[i])], nodes[chosen[0]]
                    found = self._from_pools(tokens, soft, batch, few, room, way)
                for i, suggestions in zip(chosen, found, strict=True):
                    if self._groups is not None:
                        suggestions = self._groups.spread(suggestions)
                    lists[i] = suggestions[:k]
        return lists

    def warmup(self, mode: str, size: int, length: int, nodes: int = 0) -> None:
        """Runs the programs of one shape on made-up input, and so compiles what is new.

        Args:
          mode: as `suggest` takes it.
          size, length: of a batch of requests. nodes: of its trees, but for "beam", which scores
            small trees only.
        """
        featurizer, width = self.featurizer, self.model.config.soft_dim
        tokens = np.full((size, length), featurizer.vocabulary.prefix_id, np.int32)
        tokens[:, -1] = featurizer.vocabulary.eos_id
        soft = np.zeros((size, 1, width), np.float32) if width else None
        constraint = self._kept_to([Request("")] * size, size)
        given, depth = (self.params, tokens, soft), self._pools.depth
        rooms: tuple[int, ...] = (nodes,)
        if mode == "beam":
            jax.block_until_ready(_search(self.model, self.config, *given, constraint))
            rooms = self.shapes.nodes or (LEAST_NODES, 2 * LEAST_NODES, 4 * LEAST_NODES)
        for room in rooms:
            empty = np.zeros((size, room), np.int32)
            trees = Trees(empty, empty, np.zeros((size, room, depth), np.int32))
            if mode == "hybrid":
                done = _both(self.model, self._short, *given, constraint, trees)
            else:
                done = _scored(self.model, self._short, *given, trees)
            jax.block_until_ready(done)

    def _inputs(self, ids: list[np.ndarray], requests: list[Request], shapes: Shapes):
        """The encoder's ids of a batch of at most the largest size, `[size, L]`, and the vectors of
        its soft tokens, both filled up with the first request.
        """
        size = least(shapes.batch_sizes, len(ids))
        tokens = np.zeros((size, least(shapes.lengths, max(map(len, ids)))), np.int32)
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
        return tokens, soft

    def _kept_to(self, requests: list[Request], size: int) -> Constraint:
        """The constraint of a batch filled up to `size`."""
        if self._set is None or self._ids is not None:
            return self.constraint
        intervals = [self._set.interval(request.prefix) for request in requests]
        intervals += intervals[:1] * (size - len(requests))
        assert isinstance(self.constraint, Trie)
        return self.constraint.between(np.array(intervals, np.int32))

    def _written(self, tokens, soft, requests: list[Request]) -> list[list[Suggestion]]:
        """Lists of one batch, by beams; `tokens` and `soft` from `_inputs`."""
        constraint = self._kept_to(requests, len(tokens))
        found = _search(self.model, self.config, self.params, tokens, soft, constraint)
        return self._read(found, requests)

    def _read(self, found: BeamResult, requests: list[Request]) -> list[list[Suggestion]]:
        """The texts of finished beams."""
        read = jax.device_get((found.scores, found.states, found.sequences))
        rows = list(zip(*read, strict=True))[: len(requests)]
        if self._ids is None:
            return [self._texts_of(*row) for row in rows]
        return [
            self._texts_of_ids(scores, states, request.prefix)
            for (scores, states, _), request in zip(rows, requests, strict=True)
        ]

    def _from_pools(
        self, tokens, soft, requests: list[Request], pools: list[Pool], room: int, mode: str
    ) -> list[list[Suggestion]]:
        """Lists of one batch, by scoring its pools, in trees of `room` nodes; "hybrid": and by
        beams.
        """
        trees = side_by_side([pool.tree for pool in pools], len(tokens), room)
        written: list[list[Suggestion]] = [[] for _ in requests]
        if mode == "score":
            scores = _scored(self.model, self._short, self.params, tokens, soft, trees)
        else:
            constraint = self._kept_to(requests, len(tokens))
            scores, found = _both(
                self.model, self._short, self.params, tokens, soft, constraint, trees
            )
            written = self._read(found, requests)
        lists = []
        for pool, row, others in zip(pools, np.asarray(scores), written, strict=False):
            of_pool = row[pool.ends]
            first = np.argsort(-of_pool, kind="stable")[: self.config.returned]
            texts = {pool.texts[n]: float(of_pool[n]) for n in first.tolist()}
            for other in others:
                texts.setdefault(other.text, other.score)
            best = heapq.nlargest(self.config.returned, texts.items(), key=lambda item: item[1])
            lists.append([Suggestion(text, score) for text, score in best])
        return lists

    def _texts_of(self, scores, states, sequences) -> list[Suggestion]:
        """Texts of one request's finished hypotheses; the better of two alike is kept."""
        found: dict[str, float] = {}
        for score, state, sequence in zip(scores, states, sequences, strict=True):
            if score <= NEVER / 2:
                break
            if self._set is not None:
                text = self._set.texts[self._rank_of_node[state]]
            else:
                text = normalise_query(self.featurizer.vocabulary.decode(sequence.tolist()))
            if text:
                found.setdefault(text, float(score))
        return [Suggestion(text, score) for text, score in found.items()]

    def _texts_of_ids(self, scores, states, prefix: str) -> list[Suggestion]:
        """The queries under one request's finished ids, the better id first, of those that may be
        listed for `prefix`. Every query of an id has the id's score.
        """
        assert self._set is not None and self._ids is not None
        low, high = self._set.interval(prefix)
        found: list[Suggestion] = []
        for score, state in zip(scores, states, strict=True):
            if score <= NEVER / 2:
                break
            for number in self._ids.numbers(self._codes[self._rank_of_node[state]]).tolist():
                if low <= number < high and self._set.shown[number]:
                    found.append(Suggestion(self._set.texts[number], float(score)))
        return found[: self.config.returned]


def _known_mode(mode: str) -> str:
    if mode not in MODES:
        raise UserError(f"mode = {mode!r}: expected one of {', '.join(MODES)}")
    return mode
