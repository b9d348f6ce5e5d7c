"""Lists from a model with candidate tokens: one pass of the encoder, one step of the decoder.

The candidates that a request brings (`logs.asof`) are output tokens, so their log-probabilities are
the list. Where they leave room, open beams complete it (`both_ways`); such lists come last, so that
full ones wait for no beam. Requests are answered in a few fixed shapes, so that few programs are
compiled. Queries that appeared after training have rows of the tables too (`refresh`).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.beam import BeamConfig, BeamResult, read_requests, search
from onesug_jax.decode.begun import Pieces
from onesug_jax.decode.both_ways import WritingConfig, leaves_room, merged
from onesug_jax.decode.suggester import Suggestion
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_query
from onesug_jax.model.candidates import Opening
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding
from onesug_jax.tasks.features import Featurizer, Request

TABLES = ("vectors", "words", "word_weights", "lengths", "prefix_vectors")
_STEP = 8  # input lengths are rounded up to multiples of this
_BLOCK = 64  # rows of the tables that are replaced at once: one program, whatever is new


class ItemSuggester:
    """The trained model, ready to list a request's candidates.

    Args:
      model, params: as trained.
      featurizer: makes the text part of the input.
      tables: arrays by name (`TABLES`), row 0 for none.
      text_of: query number -> text.
      prefix_row: prefix -> its row in the table of prefixes, 0: none.
      returned: queries of a list.
      batch_sizes, sizes: requests and candidates that a batch is filled up to, ascending.
      lengths: input lengths that a batch is filled up to, ascending; longer ones, and all where
        there are none, are filled up to multiples of 8.
      passes: which texts may be shown; None: all.
      writing: when queries are written beside the candidates; None: never.

    Attributes:
      plausible: which written texts may be shown, of those that pass; None: all.
      write_shape: ids and candidates that a batch is filled up to where beams are opened; None: as
        where they are not.
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
        sizes: Sequence[int] = (8, 32, 64, 128, 320),
        lengths: Sequence[int] = (),
        passes: Callable[[str], bool] | None = None,
        writing: WritingConfig | None = None,
    ):
        self.model, self.params = for_decoding(model, params)
        self.featurizer, self.text_of, self.prefix_row = featurizer, text_of, prefix_row
        self.returned, self.passes = returned, passes
        self.batch_sizes, self.sizes = tuple(batch_sizes), tuple(sizes)
        self.lengths = tuple(lengths)
        self.tables = ItemTables(*(jnp.asarray(tables[name]) for name in TABLES))
        self.writing = writing
        self.plausible: Callable[[str], bool] | None = None
        self.write_shape: tuple[int, int] | None = None
        if writing is not None:
            vocabulary = featurizer.vocabulary
            self._pieces = Pieces(vocabulary.piece_bytes(), vocabulary.eos_id)
            self._beams = BeamConfig(
                beams=writing.beams,
                returned=writing.beams,
                alpha=0.0,
                max_length=writing.max_length,
                eos_id=vocabulary.eos_id,
            )

    def refresh(self, tables: dict[str, np.ndarray], first: int, end: int) -> None:
        """Rows `first` to `end` (without it) of the tables of queries are new. Shapes stay, and so
        do the programs; a batch that has begun ends with the rows of before.
        """
        rows = len(tables["vectors"])
        for start in range(first, end, _BLOCK):
            start = max(min(start, rows - _BLOCK), 0)
            new = {name: tables[name][start : start + _BLOCK] for name in TABLES[:-1]}
            self.tables = _with_rows(self.tables, new, start)

    def warmup(self, request: Request, batch: int, length: int, size: int) -> None:
        """Compiles and runs one shape: `batch` requests, `length` ids, `size` candidates."""
        tokens, items = self.arrays([request], size, batch, length)
        jax.block_until_ready(_open(self.model, self.params, tokens, items, self.tables))

    def warmup_writing(self, request: Request, batch: int) -> None:
        """Compiles and runs the beams of `batch` requests, in `write_shape`."""
        self._write([request], len(_items(request).candidates), batch)

    def suggest(self, requests: Sequence[Request], k: int | None = None) -> list[list[Suggestion]]:
        """One list a request, best first, without duplicates, in the order of the requests.

        Args:
          requests: with `items`.
          k: most suggestions of a list; at most, and by default, `returned`.

        Raises:
          UserError: k is larger than `returned`, or below 1.
        """
        found = dict(self.finished(requests, k))
        return [found[i] for i in range(len(requests))]

    def finished(
        self, requests: Sequence[Request], k: int | None = None, write: bool = True
    ) -> Iterator[tuple[int, list[Suggestion]]]:
        """The lists of `suggest` with the places of their requests, each as soon as it is finished.

        Args:
          requests, k: as `suggest`.
          write: whether lists with room are completed, if `writing` allows it.
        """
        k = self.returned if k is None else k
        if not 1 <= k <= self.returned:
            raise UserError(f"k = {k}: expected 1 to {self.returned}")
        rooms = [self._size(request) for request in requests]
        order = sorted(range(len(requests)), key=rooms.__getitem__)
        open_lists: list[tuple[int, list[tuple[str, float]]]] = []
        most, start = self.batch_sizes[-1], 0
        while start < len(order):
            size = rooms[order[start]]
            chosen = [i for i in order[start : start + most] if rooms[i] == size]
            start += len(chosen)
            batch = [requests[i] for i in chosen]
            rows = self.log_probabilities(batch, size)
            listed = [self._listed(one, row, k) for one, row in zip(batch, rows, strict=True)]
            room = np.zeros(len(chosen), bool)
            if write and self.writing is not None:
                room = leaves_room(rows, np.array([*map(len, listed)]), k, self.writing)
            for i, row, texts, more in zip(chosen, rows, listed, room.tolist(), strict=True):
                if more:
                    open_lists.append((i, self._listed(requests[i], row, size)))
                else:
                    yield i, [Suggestion(*one, False) for one in texts]
        for start in range(0, len(open_lists), most):
            part = open_lists[start : start + most]
            written = self._write([requests[i] for i, _ in part], rooms[part[-1][0]])
            for (i, texts), more_texts in zip(part, written, strict=True):
                yield i, [Suggestion(*one) for one in merged(texts, more_texts, k)]

    def _write(
        self, requests: Sequence[Request], size: int, room: int = 0
    ) -> list[dict[str, float]]:
        """Of each request, the queries that open beams write and that may be shown, and their
        log-probabilities; `room` as of `arrays`.
        """
        assert self.writing is not None
        length, size = self.write_shape or (0, size)
        tokens, items = self.arrays(requests, size, room, length)
        prefixes = [request.prefix for request in requests]
        constraint = self._pieces.begun(prefixes, len(tokens), self.writing.longest)
        beams = _search_open(
            self.model, self._beams, self.params, tokens, items, self.tables, constraint
        )
        decode = self.featurizer.vocabulary.decode
        scores, sequences = np.asarray(beams.scores), np.asarray(beams.sequences)
        written: list[dict[str, float]] = [{} for _ in requests]
        for found, row_scores, row in zip(written, scores, sequences, strict=False):
            for score, sequence in zip(row_scores, row, strict=True):
                text = normalise_query(decode(sequence.tolist())) if score > NEG_INF / 2 else ""
                if text and text not in found and self._may_write(text):
                    found[text] = float(score)
        return written

    def _may_write(self, text: str) -> bool:
        return all(allows is None or allows(text) for allows in (self.passes, self.plausible))

    def log_probabilities(self, requests: Sequence[Request], size: int) -> np.ndarray:
        """Log p of the candidates' tokens, `[B, size]`, very low where a place is empty."""
        return np.asarray(self.opening(requests, size).log_probabilities)[: len(requests)]

    def opening(self, requests: Sequence[Request], size: int) -> Opening:
        """What the first softmax says of a batch, filled up to one of the shapes."""
        tokens, items = self.arrays(requests, size)
        return _open(self.model, self.params, tokens, items, self.tables)

    def arrays(
        self, requests: Sequence[Request], size: int, room: int = 0, length: int = 0
    ) -> tuple[np.ndarray, Items]:
        """Ids `[B, L]` and items of a batch, filled up with its first request to `room` requests of
        `length` ids; 0: to the next shape.
        """
        ids = [self.featurizer.item_input(r.prefix, r.profile) for r in requests]
        room = room or self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(requests))]
        length = length or self._length(max(map(len, ids)))
        tokens = np.zeros((room, length), np.int32)
        for row, request in zip(tokens, ids, strict=False):
            row[: len(request)] = request
        filled = [*range(len(requests)), *[0] * (room - len(requests))]
        tokens[len(ids) :] = tokens[0]

        def stack(name: str, cut: int | None = None) -> Any:
            return np.stack([getattr(requests[i].items, name)[:cut] for i in filled])

        rows: Any = np.array([self.prefix_row(requests[i].prefix) for i in filled], np.int32)
        typed: Any = np.array([len(requests[i].prefix) for i in filled], np.int32)
        items = Items(
            stack("candidates", size),
            stack("candidate_counts", size),
            stack("history"),
            stack("history_minutes"),
            stack("clock"),
            rows,
            typed,
        )
        return tokens, items

    def _length(self, longest: int) -> int:
        """How many ids a batch whose longest request has so many has room for."""
        at = bisect.bisect_left(self.lengths, longest)
        return self.lengths[at] if at < len(self.lengths) else -(-longest // _STEP) * _STEP

    def _size(self, request: Request) -> int:
        """How many candidates a batch with this request has room for."""
        candidates = _items(request).candidates
        there, most = int(np.count_nonzero(candidates)), len(candidates)
        fitting = [size for size in self.sizes if size >= there]
        return min(fitting[0] if fitting else most, most)

    def _listed(self, request: Request, row: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The likeliest candidates that may be shown, at most k, with their log-probabilities."""
        found: list[tuple[str, float]] = []
        order = np.argsort(-row, kind="stable")
        numbers = _items(request).candidates[order].tolist()
        for number, score in zip(numbers, row[order].tolist(), strict=True):
            if not number or len(found) == k:
                break
            text = self.text_of(number - 1)
            if self.passes is None or self.passes(text):
                found.append((text, score))
        return found


def _items(request: Request) -> Any:
    """What was known of the request (`logs.asof.Items`)."""
    assert request.items is not None, "a model with items reads items"
    return request.items


@functools.partial(jax.jit, static_argnums=0)
def _open(model: Seq2Seq, params, tokens, items: Items, tables: ItemTables) -> Opening:
    def opening(model: Seq2Seq) -> Opening:
        encoded = model.encode(tokens, None, None, items, tables)
        return model.opening(encoded, model.given(tokens, items), items)

    found: Any = model.apply({"params": params}, method=opening)
    return found


@jax.jit
def _with_rows(tables: ItemTables, rows: dict[str, jax.Array], first: int) -> ItemTables:
    """The tables with some rows replaced, from row `first` on."""
    changed = {
        name: jax.lax.dynamic_update_slice_in_dim(getattr(tables, name), new, first, 0)
        for name, new in rows.items()
    }
    return dataclasses.replace(tables, **changed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search_open(model: Seq2Seq, config, params, tokens, items, tables, constraint) -> BeamResult:
    read = read_requests(model, params, tokens, items=items, tables=tables)
    return search(model, params, read, constraint, config)
