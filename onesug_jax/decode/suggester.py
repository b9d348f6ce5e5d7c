"""From requests to suggestion lists: features in, beams or scores, text out.

The one place where vocabulary, features, model and beams meet; evaluation, the `suggest` stage and
the server all use it, so they show the same lists. No TensorFlow here. Requests are served in a few
fixed shapes (batch sizes, input lengths and trees rounded up), so that few programs are compiled.

Three modes: "beam" writes the list; "score" ranks the candidates that requests bring, in one pass
(`score.py`); "hybrid" does both, with fewer and shorter beams, and lists the best of either.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from onesug_jax.arrays import NodeScores
from onesug_jax.decode.beam import BeamConfig, BeamResult, beam_search, read_requests, search
from onesug_jax.decode.known import Filter, KnownQueries
from onesug_jax.decode.score import MODES, ScoreConfig, Trees, plant, score_trees
from onesug_jax.decode.trie import NEVER, Constraint, Free, TextRanks, build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.seq2seq import Seq2Seq, for_decoding
from onesug_jax.tasks.features import Featurizer, Request

_LENGTH_STEP = 32  # input lengths are rounded up to multiples of this
_LEAST_NODES = 64  # trees are filled up to this many nodes, or twice, four times .. as many
_REMEMBERED = 1 << 16  # texts whose ranks are kept


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One suggested query and its length-normalised log-probability."""

    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that batches are filled up to, each ascending.

    Attributes:
      batch_sizes: requests. lengths: ids of a request, the last one the longest input.
      nodes: of the trees of "score" and "hybrid"; candidates that the last one does not hold are
        left out. None: 64, 128, .. as many as it takes.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    nodes: tuple[int, ...] | None = None


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
        (`represent.semantic_ids`): the model then writes ids, and each is read as the queries under
        it, best first. Needs `queries`.
      batch_sizes: sizes a batch is filled up to, ascending.
      mode: "beam", "score" or "hybrid", where `suggest` is not told another. Lists of semantic ids
        are always written by beams.
      scoring: what the latter two look at.
      shown: which known queries may be shown; see `show`.

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
    ):
        self.mode, self.scoring = _known_mode(mode), scoring or ScoreConfig()
        if list(batch_sizes) != sorted(set(batch_sizes)) or batch_sizes[0] < 1:
            raise UserError(f"batch_sizes = {batch_sizes}: expected ascending sizes from 1 up")
        self.model, self.params = for_decoding(model, params)
        self.featurizer, self.must_start = featurizer, must_start
        vocabulary = featurizer.vocabulary
        text = np.arange(model.config.vocab_size) < vocabulary.pieces
        text[[vocabulary.pad_id, vocabulary.unk_id]] = False
        self.constraint: Constraint = Free(jax.numpy.asarray(text))
        self._texts: list[str] = []
        self._table: np.ndarray | None = None
        self._ids = ids
        if ids is not None:
            if queries is None:
                raise UserError("lists of semantic ids need the known queries: set closed=True")
            self._texts = sorted(queries)
            self._counts = np.array([queries[text] for text in self._texts])
            codes = np.unique(np.asarray(ids.ids), axis=0)
            sequences = [tuple(featurizer.id_tokens(row).tolist()) for row in codes]
            self.constraint, self._rank_of_node = build_trie(sequences)
            self._codes = codes
            config = dataclasses.replace(config, max_length=len(sequences[0]))
        elif queries is not None:
            known = KnownQueries.of(queries, featurizer)
            self._texts, self._counts, self._table = known.texts, known.counts, known.tokens
            self.constraint, self._rank_of_node = build_trie(known.tokens)
            longest = known.tokens.shape[1]
            config = dataclasses.replace(config, max_length=min(config.max_length, longest))
        longest = featurizer.spec.input_length
        self.shapes = Shapes(
            tuple(batch_sizes), (*range(_LENGTH_STEP, longest, _LENGTH_STEP), longest)
        )
        self.config, self._ranks = config, TextRanks(self._texts)
        self._width = config.max_length if self._table is None else self._table.shape[1]
        self._whole = self.constraint
        self.show(shown)
        self._rank = functools.lru_cache(maxsize=_REMEMBERED)(self._find)
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
        if shown is None or shown == Filter():
            self._shown, self.constraint = np.ones(len(self._texts), bool), self._whole
            return
        if not self._texts:
            raise UserError("a filter chooses among known queries: set closed=True")
        passed = shown.of(self._texts, self._counts)
        if not passed.any():
            raise UserError(
                f"none of the {len(self._texts):,} known queries passes the filter "
                f"({len(shown.blocked):,} blocked terms, least_count={shown.least_count}): "
                "nothing could be suggested; block less"
            )
        constraint = self._whole
        if self._ids is None:
            constraint = self._whole.showing(passed, self._rank_of_node)
        self._shown, self.constraint = passed, constraint

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
        ids = [self.featurizer.inputs(request) for request in requests]
        pools = [self._pool(request, mode) for request in requests]
        lists: list[list[Suggestion]] = [[] for _ in requests]
        largest = self.shapes.batch_sizes[-1]
        for pooled in (False, True):
            order = [i for i, pool in enumerate(pools) if bool(pool) == pooled]
            order.sort(key=lambda i: (len(pools[i]), len(ids[i])))
            for start in range(0, len(order), largest):
                chosen = order[start : start + largest]
                batch = [[given[i] for i in chosen] for given in (ids, requests, pools)]
                found = self._from_pools(*batch, mode) if pooled else self._written(*batch[:2])
                for i, suggestions in zip(chosen, found, strict=True):
                    lists[i] = suggestions[:k]
        return lists

    def _inputs(self, ids: list[np.ndarray], requests: list[Request]):
        """The encoder's ids of a batch of at most the largest size, `[size, L]`, and the vectors of
        its soft tokens, both filled up with the first request.
        """
        shapes = self.shapes
        size = _least(shapes.batch_sizes, len(ids))
        tokens = np.zeros((size, _least(shapes.lengths, max(map(len, ids)))), np.int32)
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
        if not self._texts or self._ids is not None:
            return self.constraint
        intervals = [self._interval(request.prefix) for request in requests]
        intervals += intervals[:1] * (size - len(requests))
        return self.constraint.between(np.array(intervals, np.int32))

    def _written(self, ids: list[np.ndarray], requests: list[Request]) -> list[list[Suggestion]]:
        """Lists of one batch, by beams."""
        tokens, soft = self._inputs(ids, requests)
        constraint = self._kept_to(requests, len(tokens))
        found = _search(self.model, self.config, self.params, tokens, soft, constraint)
        return self._read(found, requests)

    def _read(self, found: BeamResult, requests: list[Request]) -> list[list[Suggestion]]:
        """The texts of finished beams."""
        rows = jax.device_get((found.scores, found.states, found.sequences))
        rows = list(zip(*rows, strict=True))[: len(requests)]
        if self._ids is None:
            return [self._texts_of(*row) for row in rows]
        return [
            self._texts_of_ids(scores, states, self._interval(request.prefix))
            for (scores, states, _), request in zip(rows, requests, strict=True)
        ]

    def _from_pools(
        self,
        ids: list[np.ndarray],
        requests: list[Request],
        pools: list[dict[str, np.ndarray]],
        mode: str,
    ) -> list[list[Suggestion]]:
        """Lists of one batch, by scoring its pools; "hybrid": and by beams."""
        tokens, soft = self._inputs(ids, requests)
        trees, ends, pools = self._planted(pools, len(tokens))
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
        for pool, row, end, others in zip(pools, np.asarray(scores), ends, written, strict=False):
            texts = {s.text: s.score for s in others}
            texts |= zip(pool, row[end].tolist(), strict=True)
            best = heapq.nlargest(self.config.returned, texts.items(), key=lambda item: item[1])
            lists.append([Suggestion(text, score) for text, score in best])
        return lists

    def _planted(self, pools: list[dict[str, np.ndarray]], size: int):
        """The trees of a batch, filled up to `size` of them and to one of few numbers of nodes;
        where the candidates end in them; and the pools, shortened to what the largest tree holds.
        """
        rooms = self.shapes.nodes
        while True:
            tables = [_padded(pool.values(), self._width) for pool in pools]
            trees, ends = plant(tables)
            have, nodes = trees.tokens.shape
            if not rooms or nodes <= rooms[-1]:
                break
            most = max(map(len, pools)) * 3 // 4
            pools = [dict(list(pool.items())[:most]) for pool in pools]
        room = _least(rooms, nodes) if rooms else _LEAST_NODES
        while room < nodes:
            room *= 2

        def fill(x: np.ndarray) -> np.ndarray:
            return np.pad(x, ((0, size - have), (0, room - nodes), *[(0, 0)] * (x.ndim - 2)))

        return jax.tree.map(fill, trees), ends, pools

    def rehearse(self, mode: str, size: int, length: int, nodes: int = 0) -> None:
        """Runs the program of one shape on made-up input, and so compiles it where it is new.

        Args:
          mode: as `suggest` takes it.
          size, length: of a batch of requests. nodes: of its trees, but for "beam".
        """
        featurizer = self.featurizer
        tokens = np.full((size, length), featurizer.vocabulary.prefix_id, np.int32)
        tokens[:, -1] = featurizer.vocabulary.eos_id
        width = self.model.config.soft_dim
        soft = np.zeros((size, 1, width), np.float32) if width else None
        constraint = self._kept_to([Request("")] * size, size)
        given = (self.params, tokens, soft)
        if mode == "beam":
            done = _search(self.model, self.config, *given, constraint)
        else:
            empty = np.zeros((size, nodes), np.int32)
            trees = Trees(empty, empty, np.zeros((size, nodes, self._width), np.int32))
            if mode == "score":
                done = _scored(self.model, self._short, *given, trees)
            else:
                done = _both(self.model, self._short, *given, constraint, trees)
        jax.block_until_ready(done)

    def _pool(self, request: Request, mode: str) -> dict[str, np.ndarray]:
        """The candidates that this request may be answered with, and their target ids."""
        if mode == "beam" or self._ids is not None:
            return {}
        candidates = request.candidates[: self.scoring.candidates]
        if not self._texts:
            longest = self._width
            found = {text: self.featurizer.target(text) for text in candidates}
            return {text: ids for text, ids in found.items() if 1 < len(ids) <= longest}
        low, high = self._interval(request.prefix)
        ranks = [self._rank(text) for text in candidates]
        shown = self._shown
        return {self._texts[r]: self._table[r] for r in ranks if low <= r < high and shown[r]}

    def _find(self, text: str) -> int:
        """The rank of a known query, else -1."""
        rank = bisect.bisect_left(self._texts, text)
        return rank if rank < len(self._texts) and self._texts[rank] == text else -1

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
                if interval[0] <= number < interval[1] and self._shown[number]:
                    found.append(Suggestion(self._texts[number], float(score)))
        return found[: self.config.returned]


def _known_mode(mode: str) -> str:
    if mode not in MODES:
        raise UserError(f"mode = {mode!r}: expected one of {', '.join(MODES)}")
    return mode


def _padded(sequences: Iterable[Sequence[int]], length: int) -> np.ndarray:
    """Token sequences as `[N, length]`, 0 behind their ends."""
    rows = list(sequences)
    table = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that holds `wanted`."""
    return sizes[bisect.bisect_left(sizes, wanted)]
