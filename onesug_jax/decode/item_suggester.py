"""Lists from a model with candidate tokens: one pass of the encoder, one step of the decoder.

The candidates that a request brings (`logs.asof`) are output tokens, so their log-probabilities are
the list; nothing is written out. Requests are answered in a few fixed shapes, so that few programs
are compiled. Queries that appeared after training have rows of the tables too (`refresh`).
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.decode.beam import BeamConfig, BeamResult, read_requests, search
from onesug_jax.decode.begun import Pieces
from onesug_jax.decode.both_ways import WritingConfig, leaves_room, merged
from onesug_jax.decode.suggester import Suggestion
from onesug_jax.decode.trie import NEVER
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_query
from onesug_jax.model.candidates import Opening
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq, for_decoding
from onesug_jax.tasks.features import Featurizer, Request

TABLES = ("vectors", "words", "word_weights", "lengths", "prefix_vectors")
_LENGTH = 8  # input lengths are rounded up to multiples of this


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
      passes: which texts may be shown; None: all.
      writing: when queries are written beside the candidates; None: never.
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
        passes: Callable[[str], bool] | None = None,
        writing: WritingConfig | None = None,
    ):
        self.model, self.params = for_decoding(model, params)
        self.featurizer, self.text_of, self.prefix_row = featurizer, text_of, prefix_row
        self.returned, self.passes = returned, passes
        self.batch_sizes, self.sizes = tuple(batch_sizes), tuple(sizes)
        self.tables = ItemTables(*(jnp.asarray(tables[name]) for name in TABLES))
        self.writing = writing
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
        """Rows `first` to `end` (without it) of the tables of queries are new; shapes stay."""
        rows = slice(first, end)
        self.tables = self.tables.replace(
            **{
                name: getattr(self.tables, name).at[rows].set(tables[name][rows])
                for name in TABLES[:-1]
            }
        )

    def suggest(self, requests: Sequence[Request], k: int | None = None) -> list[list[Suggestion]]:
        """One list a request, best first, without duplicates, in the order of the requests.

        Args:
          requests: with `items`.
          k: most suggestions of a list; at most, and by default, `returned`.

        Raises:
          UserError: k is larger than `returned`, or below 1.
        """
        k = self.returned if k is None else k
        if not 1 <= k <= self.returned:
            raise UserError(f"k = {k}: expected 1 to {self.returned}")
        rooms = [self._size(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: rooms[i])
        lists: list[list[Suggestion]] = [[] for _ in requests]
        start = 0
        while start < len(order):
            same = [i for i in order[start:] if rooms[i] == rooms[order[start]]]
            chosen = same[: self.batch_sizes[-1]]
            start += len(chosen)
            batch = [requests[i] for i in chosen]
            found = self.log_probabilities(batch, rooms[chosen[0]])
            written = self._written(batch, found, rooms[chosen[0]])
            for i, row, more in zip(chosen, found, written, strict=True):
                lists[i] = self._listed(requests[i], row, more, k)
        return lists

    def _written(
        self, requests: Sequence[Request], found: np.ndarray, size: int
    ) -> list[dict[str, float]]:
        """Of each request, the queries that open beams write, and their log-probabilities; none
        where the candidates leave no room.
        """
        written: list[dict[str, float]] = [{} for _ in requests]
        if self.writing is None:
            return written
        rows = np.flatnonzero(leaves_room(found, self.returned, self.writing))
        if not len(rows):
            return written
        chosen = [requests[i] for i in rows]
        tokens, items = self.arrays(chosen, size)
        prefixes = [request.prefix for request in chosen]
        constraint = self._pieces.begun(prefixes, len(tokens), self.writing.longest)
        beams = _write(self.model, self._beams, self.params, tokens, items, self.tables, constraint)
        decode = self.featurizer.vocabulary.decode
        scores, sequences = np.asarray(beams.scores), np.asarray(beams.sequences)
        for i, row_scores, row in zip(rows, scores, sequences, strict=False):
            for score, sequence in zip(row_scores, row, strict=True):
                text = normalise_query(decode(sequence.tolist())) if score > NEVER / 2 else ""
                if text:
                    written[i].setdefault(text, float(score))
        return written

    def log_probabilities(self, requests: Sequence[Request], size: int) -> np.ndarray:
        """Log p of the candidates' tokens, `[B, size]`, very low where a place is empty."""
        return np.asarray(self.opening(requests, size).log_probabilities)[: len(requests)]

    def opening(self, requests: Sequence[Request], size: int) -> Opening:
        """What the first softmax says of a batch, filled up to one of the shapes."""
        tokens, items = self.arrays(requests, size)
        return _open(self.model, self.params, tokens, items, self.tables)

    def arrays(self, requests: Sequence[Request], size: int) -> tuple[np.ndarray, Items]:
        """Ids `[B, L]` and items of a batch, filled up with its first request."""
        ids = [self.featurizer.item_input(r.prefix, r.profile) for r in requests]
        room = self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(requests))]
        length = -(-max(map(len, ids)) // _LENGTH) * _LENGTH
        tokens = np.zeros((room, length), np.int32)
        for row, request in zip(tokens, ids, strict=False):
            row[: len(request)] = request
        filled = [*range(len(requests)), *[0] * (room - len(requests))]
        tokens[len(ids) :] = tokens[0]

        def stack(name: str, cut: int | None = None) -> np.ndarray:
            return np.stack([getattr(requests[i].items, name)[:cut] for i in filled])

        rows = np.array([self.prefix_row(requests[i].prefix) for i in filled], np.int32)
        items = Items(
            stack("candidates", size),
            stack("candidate_counts", size),
            stack("history"),
            stack("history_minutes"),
            stack("clock"),
            rows,
            np.array([len(requests[i].prefix) for i in filled], np.int32),
        )
        return tokens, items

    def _size(self, request: Request) -> int:
        """How many candidates a batch with this request has room for."""
        assert request.items is not None, "a model with items reads items"
        there = int(np.count_nonzero(request.items.candidates))
        most = len(request.items.candidates)
        fitting = [size for size in self.sizes if size >= there]
        return min(fitting[0] if fitting else most, most)

    def _listed(
        self, request: Request, row: np.ndarray, written: dict[str, float], k: int
    ) -> list[Suggestion]:
        assert request.items is not None
        found: list[tuple[str, float]] = []
        for place in np.argsort(-row, kind="stable"):
            number = int(request.items.candidates[place])
            if not number or (self.passes is None and len(found) == k):
                break
            found.append((self.text_of(number - 1), float(row[place])))
        best = merged(found, written, len(found) + len(written))
        return [
            Suggestion(text, score, new)
            for text, score, new in best
            if self.passes is None or self.passes(text)
        ][:k]


@functools.partial(jax.jit, static_argnums=0)
def _open(model: Seq2Seq, params, tokens, items: Items, tables: ItemTables) -> Opening:
    def opening(model: Seq2Seq) -> Opening:
        encoded = model.encode(tokens, None, None, items, tables)
        return model.opening(encoded, model.given(tokens, items), items)

    return model.apply({"params": params}, method=opening)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _write(model: Seq2Seq, config, params, tokens, items, tables, constraint) -> BeamResult:
    read = read_requests(model, params, tokens, items=items, tables=tables)
    return search(model, params, read, constraint, config)
