"""Lists from a model with candidate tokens: one pass of the encoder, one step of the decoder.

The candidates of a request (`logs.asof`) are output tokens, so their log-probabilities rank the
list. Where they leave room, beams add written queries (`both_ways`); these lists come last, so that
no other list waits for beams. Batches have a few fixed shapes, so that few programs are compiled,
and use all devices of the host (`replicas`). Queries that appear after training get rows of the
tables too (`refresh`). A model without candidate tokens (an ablation) writes its whole list.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.beam import BeamConfig, BeamResult, search
from onesug_jax.decode.begun import Pieces
from onesug_jax.decode.both_ways import WritingConfig, leaves_room, merged
from onesug_jax.decode.reading import read_requests
from onesug_jax.decode.replicas import Replicas, by_row, split_constraint
from onesug_jax.decode.shapes import batches_of
from onesug_jax.decode.suggester import Suggestion, written_query
from onesug_jax.errors import UserError
from onesug_jax.model.candidates import Opening
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding
from onesug_jax.tasks.features import Featurizer, Request

TABLES = ("vectors", "words", "word_weights", "lengths", "prefix_vectors")
_STEP = 24  # input lengths are rounded up to multiples of this
_BLOCK = 64  # table rows that are replaced at once, so that one program serves any number
_CACHED = 65_536  # prefixes in the caches of rows and ids


class Room(NamedTuple):
    """The numbers of candidates and of history queries that a request is padded to."""

    candidates: int
    history: int


class ItemSuggester:
    """Makes the lists of requests with a trained model.

    Args:
      model, params: the trained model.
      featurizer: makes the text part of the input.
      tables: arrays by name (`TABLES`); row 0 is empty.
      text_of: query number -> text.
      prefix_row: prefix -> its row in the table of prefixes, 0: none.
      returned: queries in a list.
      batch_sizes: numbers of requests that a batch is padded to, ascending. A size that the number
        of devices divides is split over them.
      sizes, pasts: numbers of candidates and of history queries that a batch is padded to,
        ascending; for larger requests, the maximum.
      lengths: input lengths that a batch is padded to, ascending. Longer inputs, or all if there
        are no lengths, are padded to multiples of 24. If there are any, requests longer than the
        first are expected to be rare, and are padded to all candidates and the whole history.
      passes: whether a text may be shown; None: all.
      writing: when queries are written in addition to the candidates; None: never, which a model
        without candidate tokens does not allow.

    Attributes:
      plausible: whether a written text that passes may be shown; None: all.
      write_shape: numbers of ids and of candidates that a batch is padded to for beams; None: the
        usual length, and the first of `sizes` or all candidates.
    """

    def __init__(
        self,
        model: Seq2Seq,
        params,
        featurizer: Featurizer,
        tables: dict[str, np.ndarray],
        text_of: Callable[[int], str],
        prefix_row: Callable[[str], int],
        *,
        returned: int = 16,
        batch_sizes: Sequence[int] = (1, 8, 32),
        sizes: Sequence[int] = (8, 32, 128),
        pasts: Sequence[int] = (8,),
        lengths: Sequence[int] = (),
        passes: Callable[[str], bool] | None = None,
        writing: WritingConfig | None = None,
    ):
        self._ranks = model.config.writes_candidates
        self.model, params = for_decoding(model, params)
        self.replicas = Replicas()
        self.params = self.replicas.copied(params)
        arrays: Any = [tables[name] for name in TABLES]
        self.tables = self.replicas.copied(ItemTables(*arrays))
        self.featurizer, self.text_of = featurizer, text_of
        self.prefix_row = functools.lru_cache(_CACHED)(prefix_row)
        self._item_input = functools.lru_cache(_CACHED)(featurizer.item_input)
        self.returned, self.passes = returned, passes
        self.batch_sizes, self.sizes = tuple(batch_sizes), tuple(sizes)
        self.pasts, self.lengths = tuple(pasts), tuple(lengths)
        self.writing = writing
        self.plausible: Callable[[str], bool] | None = None
        self.write_shape: tuple[int, int] | None = None
        if writing is not None:
            vocabulary = featurizer.vocabulary
            self._pieces = Pieces(vocabulary.piece_bytes(), vocabulary.eos_id)
            beams = writing.beams if self._ranks else max(writing.beams, returned)
            self._beams = BeamConfig(
                beams=beams,
                returned=beams,
                alpha=0.0,
                max_length=writing.max_length,
                eos_id=vocabulary.eos_id,
            )

    def refresh(self, tables: dict[str, np.ndarray], first: int, end: int) -> None:
        """Takes over rows `first` to `end` (exclusive) of the query tables. The shapes and so the
        programs stay the same; a batch that has started finishes with the old rows.
        """
        rows = len(tables["vectors"])
        for start in range(first, end, _BLOCK):
            start = max(min(start, rows - _BLOCK), 0)
            new = {name: tables[name][start : start + _BLOCK] for name in TABLES[:-1]}
            self.tables = self.replicas.copied(_with_rows(self.tables.every, new, start))

    def warmup(self, request: Request, batch: int, length: int, *room: int) -> None:
        """Compiles and runs one shape: `batch` requests, `length` ids, and the fields of `Room`."""
        arrays = self.arrays([request], Room(*room), batch, length)
        if self._ranks:
            jax.block_until_ready(self._opened(*arrays))

    def warmup_writing(self, request: Request, batch: int) -> None:
        """Compiles and runs the beams of `batch` requests, in `write_shape`."""
        self._write([request], len(_items(request).candidates), batch)

    def suggest(self, requests: Sequence[Request], k: int | None = None) -> list[list[Suggestion]]:
        """One list per request, best first, without duplicates, in the order of the requests.

        Args:
          requests: with `items`.
          k: maximum length of a list; at most, and by default, `returned`.

        Raises:
          UserError: k is larger than `returned`, or below 1.
        """
        lists = dict(self.finished(requests, k))
        return [lists[i] for i in range(len(requests))]

    def finished(
        self, requests: Sequence[Request], k: int | None = None, write: bool = True
    ) -> Iterator[tuple[int, list[Suggestion]]]:
        """The lists of `suggest` with the indices of their requests, each as soon as it is ready.

        Args:
          requests, k: as in `suggest`.
          write: whether beams add to lists with room, if `writing` allows it; a model without
            candidate tokens writes in any case.
        """
        k = self.returned if k is None else k
        if not 1 <= k <= self.returned:
            raise UserError(f"k = {k}: expected 1 to {self.returned}")
        rooms = [self._room(request) for request in requests]
        started = []
        for past in sorted({room.history for room in rooms}) if self._ranks else ():
            same = [i for i, room in enumerate(rooms) if room.history == past]
            for indices in batches_of([rooms[i].candidates for i in same], self.batch_sizes):
                members = [same[index] for index in indices]
                room = max(rooms[i] for i in members)
                batch = [requests[i] for i in members]
                started.append((members, self.opening(batch, room).log_probabilities))
        to_write: list[tuple[int, list[Suggestion]]] = []
        if not self._ranks:
            to_write = [(i, []) for i in range(len(requests))]
        for members, scores in started:  # the device computes the next batches meanwhile
            rows = np.asarray(scores)[: len(members)]
            orders = np.argsort(-rows, axis=1, kind="stable")
            ranked = list(zip(members, orders, rows, strict=True))
            lists = [self._listed(requests[i], order, row, k) for i, order, row in ranked]
            has_room = [False] * len(members)
            if write and self.writing is not None:
                counts = np.array([*map(len, lists)])
                has_room = leaves_room(rows, counts, k, self.writing).tolist()
            for (i, order, row), listed, room_left in zip(ranked, lists, has_room, strict=True):
                if room_left:
                    to_write.append((i, self._listed(requests[i], order, row, len(row))))
                else:
                    yield i, listed
        largest = self.batch_sizes[-1]
        for start in range(0, len(to_write), largest):
            part = to_write[start : start + largest]
            size = max(rooms[i].candidates for i, _ in part)
            written = self._write([requests[i] for i, _ in part], size)
            for (i, candidates), texts in zip(part, written, strict=True):
                best = merged([candidate[:2] for candidate in candidates], texts, k)
                yield i, [Suggestion(*query) for query in best]

    def _write(
        self, requests: Sequence[Request], size: int, batch: int = 0
    ) -> list[dict[str, float]]:
        """For each request, the written queries that may be shown -> their log-probabilities;
        `batch` as in `arrays`.
        """
        assert self.writing is not None
        if (size,) != self.sizes[:1]:
            size = len(_items(requests[0]).candidates)
        length, size = self.write_shape or (0, size)
        room = Room(size, len(_items(requests[0]).history))
        tokens, items = self.arrays(requests, room, batch, length)
        prefixes = [request.prefix for request in requests]
        constraint = self._pieces.begun(prefixes, len(tokens), self.writing.longest)
        mesh, params, tables = self.replicas.of(len(tokens), self.params, self.tables)
        inputs = (params, tokens, items, tables, constraint)
        beams = _search_open(self.model, self._beams, mesh, *inputs)
        vocabulary, filters = self.featurizer.vocabulary, (self.passes, self.plausible)
        scores, sequences = np.asarray(beams.scores), np.asarray(beams.sequences)
        written: list[dict[str, float]] = [{} for _ in requests]
        for texts, row_scores, row in zip(written, scores, sequences, strict=False):
            for score, sequence in zip(row_scores, row, strict=True):
                text = written_query(vocabulary, sequence) if score > NEG_INF / 2 else ""
                if text and text not in texts:
                    if all(allows is None or allows(text) for allows in filters):
                        texts[text] = float(score)
        return written

    def opening(self, requests: Sequence[Request], room: Room) -> Opening:
        """The candidates' scores of a batch, padded to one of the shapes."""
        return self._opened(*self.arrays(requests, room))

    def _opened(self, tokens: np.ndarray, items: Items) -> Opening:
        mesh, params, tables = self.replicas.of(len(tokens), self.params, self.tables)
        return _open(self.model, mesh, params, tokens, items, tables)

    def arrays(
        self, requests: Sequence[Request], room: Room, batch: int = 0, length: int = 0
    ) -> tuple[np.ndarray, Items]:
        """Ids `[B, L]` and items of a batch, padded with its first request to `batch` requests of
        `length` ids; 0: to the next shape.
        """
        ids = [*map(self._ids, requests)]
        batch = batch or self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(requests))]
        length = length or self._length(max(map(len, ids)))
        past, count = room.history, _items(requests[0]).candidate_counts.shape[1]
        tokens = np.zeros((batch, length), np.int32)
        candidates = np.empty((batch, room.candidates), np.int32)
        counts = np.empty((batch, room.candidates, count), np.float32)
        history = np.empty((batch, past), np.int32)
        minutes = np.empty((batch, past), np.float32)
        clock = np.empty((batch, 2), np.int32)
        prefix_row, typed = np.empty(batch, np.int32), np.empty(batch, np.int32)
        for row, request in enumerate(requests):
            items = _items(request)
            tokens[row, : len(ids[row])] = ids[row]
            candidates[row] = items.candidates[: room.candidates]
            counts[row] = items.candidate_counts[: room.candidates]
            history[row] = items.history[:past]
            minutes[row] = items.history_minutes[:past]
            clock[row] = items.clock
            prefix_row[row], typed[row] = self.prefix_row(request.prefix), len(request.prefix)
        fields: Any = (candidates, counts, history, minutes, clock, prefix_row, typed)
        for array in (tokens, *fields):
            array[len(requests) :] = array[0]
        return tokens, Items(*fields)

    def _length(self, longest: int) -> int:
        """The input length of a batch whose longest request has so many ids."""
        at = bisect.bisect_left(self.lengths, longest)
        return self.lengths[at] if at < len(self.lengths) else -(-longest // _STEP) * _STEP

    def _ids(self, request: Request) -> np.ndarray:
        return self._item_input(request.prefix, tuple(request.profile))

    def _room(self, request: Request) -> Room:
        """The smallest room that a batch with this request can have."""
        items = _items(request)
        most, longest = len(items.candidates), len(items.history)
        if self.lengths and len(self._ids(request)) > self.lengths[0]:
            return Room(most, longest)
        size = bisect.bisect_left(self.sizes, np.count_nonzero(items.candidates))
        past = bisect.bisect_left(self.pasts, np.count_nonzero(items.history))
        return Room(
            min((*self.sizes, most)[size], most), min((*self.pasts, longest)[past], longest)
        )

    def _listed(
        self, request: Request, order: np.ndarray, scores: np.ndarray, k: int
    ) -> list[Suggestion]:
        """The likeliest candidates that may be shown, at most k, with their log-probabilities.

        `order`: indices of the candidates, best first; `scores`: by index.
        """
        suggestions: list[Suggestion] = []
        passes, text_of = self.passes, self.text_of
        order = order[: k if passes is None else len(order)]
        numbers, scores = _items(request).candidates[order], scores[order]
        for number, score in zip(numbers.tolist(), scores.tolist(), strict=True):
            if not number or len(suggestions) == k:
                break
            text = text_of(number - 1)
            if passes is None or passes(text):
                suggestions.append(Suggestion(text, score))
        return suggestions


def _items(request: Request) -> Any:
    """The as-of items of the request (`logs.asof.Items`)."""
    assert request.items is not None, "a model with items needs Request.items"
    return request.items


@functools.partial(jax.jit, static_argnums=(0, 1))
def _open(model: Seq2Seq, mesh, params, tokens, items: Items, tables: ItemTables) -> Opening:
    def opening(model: Seq2Seq, tables, tokens, items) -> Opening:
        encoded = model.encode(tokens, None, None, items, tables)
        return model.opening(encoded, model.given(tokens, items), items)

    def run(shared, rows):
        return model.apply({"params": shared[0]}, shared[1], *rows, method=opening)

    result: Opening = by_row(mesh, run, (params, tables), (tokens, items))
    return result


@jax.jit
def _with_rows(tables: ItemTables, rows: dict[str, jax.Array], first: int) -> ItemTables:
    """The tables with `rows` in place of those from row `first` on."""
    changed = {
        name: jax.lax.dynamic_update_slice_in_dim(getattr(tables, name), new, first, 0)
        for name, new in rows.items()
    }
    return dataclasses.replace(tables, **changed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search_open(
    model: Seq2Seq, config, mesh, params, tokens, items, tables, constraint
) -> BeamResult:
    def run(shared, rows):
        params, tables, constraint = shared
        tokens, items, by_request = rows
        read = read_requests(model, params, tokens, items=items, tables=tables)
        constraint = dataclasses.replace(constraint, **by_request)
        return dataclasses.replace(search(model, params, read, constraint, config), steps=None)

    shared, by_request = split_constraint(constraint)
    result: BeamResult = by_row(mesh, run, (params, tables, shared), (tokens, items, by_request))
    return result
