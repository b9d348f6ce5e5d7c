"""A version of a model that reads items: candidates and counts as of the request's own moment.

Features come from the live as-of state, as in training. A list is one pass of the encoder and one
step of the decoder over the candidates. If there are too few candidates, beam search completes the
list; a full list does not wait for it, and level "candidates" skips it. A new query gets a vector
and a row of the tables while requests continue.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onesug_jax.decode.closed_set import Filter
from onesug_jax.decode.item_suggester import ItemSuggester
from onesug_jax.retrieval.tables import QueryTables, words_of
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import CANDIDATES, FULL, POPULAR, Pace
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.requests import SuggestRequest, SuggestResult
from onesug_jax.serve.version import ModelVersion
from onesug_jax.tasks.features import FeatureSpec, Request

_LENGTHS = (24,)  # ids; nearly all prefixes with a profile fit
_STEP = 8  # the longest length is a multiple of this
_SHORT_HISTORY = 5  # the short history shape is the longest, divided by this


class ItemVersion(ModelVersion):
    """A version that lists the candidates of a request.

    Args:
      name, path: as `ModelVersion`.
      suggester: ranks candidates, over the queries of `live`.
      live: current counts, histories and candidates.
      tables: host copy of the suggester's tables, with rows of all queries that exist.
      encode: texts -> their vectors [n, E].
      settings: as `ModelVersion`.
    """

    LEVELS = (FULL, CANDIDATES, POPULAR)
    live: LiveCounts

    def __init__(
        self,
        name: str,
        path: str,
        suggester: ItemSuggester,
        live: LiveCounts,
        tables: QueryTables,
        encode: Callable[[Sequence[str]], np.ndarray],
        **settings,
    ):
        self.suggester, self.tables, self._encode = suggester, tables, encode
        self._filled = tables.first
        suggester.plausible = self._plausible
        super().__init__(name, path, live=live, **settings)
        self.refresh()

    @property
    def history(self) -> int:
        """See `ModelVersion`."""
        return self.live.config.history

    @property
    def longest(self) -> int:
        """See `ModelVersion`."""
        return self.suggester.returned

    def levels(self, config: EngineConfig) -> tuple[str, ...]:
        """See `ModelVersion`; without writing, "candidates" equals "full" and is left out."""
        levels = super().levels(config)
        if self.suggester.writing is None and FULL in levels:
            levels = tuple(level for level in levels if level != CANDIDATES)
        return levels

    def _plausible(self, text: str) -> bool:
        """Whether a written query may be shown: the tables contain all of its words, and
        `LiveCounts.may_write` holds.
        """
        frequency = self.tables.frequency
        return self.live.may_write(text) and all(word in frequency for word in words_of(text))

    def _show(self, shown: Filter) -> None:
        self.suggester.passes = None if shown == Filter() else self._passing(shown)

    def _passing(self, shown: Filter) -> Callable[[str], bool]:
        def passes(text: str) -> bool:
            if shown.blocks(text):
                return False
            return not shown.least_count or self.live.searched(text) >= shown.least_count

        return passes

    def warmup(self, config: EngineConfig, pace: Pace, stop: Callable[[], bool]) -> Iterator[None]:
        """See `ModelVersion`."""
        suggester, spec = self.suggester, self.suggester.featurizer.spec
        most, longest_history = self.live.config.candidates, self.live.config.history
        sizes = (*(size for size in config.candidates if size < most), most)
        short = longest_history // _SHORT_HISTORY
        histories = (short,) if short else ()
        texts = lengths(spec)
        suggester.write_shape = texts[-1], most
        request = self._featurize([SuggestRequest("")])[0]
        done: set = set()
        writes = suggester.writing is not None and FULL in self.levels(config)
        for step in (
            (config.batch_sizes[-1:], texts[-1:], sizes[-1:], ()),
            (config.batch_sizes, texts[-1:], sizes[-1:], ()),
            (config.batch_sizes, texts, sizes, histories),
        ):
            # Smaller numbers of items are compiled for the shortest text only.
            shortest = itertools.product(step[1][:1], step[2], (*step[3], longest_history))
            inputs = (*shortest, *((text, most, longest_history) for text in step[1][1:]))
            for shape in itertools.product(step[0], inputs):
                if stop():
                    return
                if shape not in done:
                    done.add(shape)
                    pace.time(FULL, shape[0], suggester.warmup, request, shape[0], *shape[1])
                    pace.note(CANDIDATES, shape[0], pace.of(FULL, shape[0]))
            for batch in step[0] if writes else ():
                if stop():
                    return
                if batch not in done:
                    done.add(batch)
                    suggester.warmup_writing(request, batch)
            suggester.batch_sizes, suggester.lengths, suggester.sizes, suggester.pasts = step
            yield

    def _answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        inputs = self._featurize(requests)
        for index, suggestions in self.suggester.finished(inputs, write=level == FULL):
            yield (
                index,
                SuggestResult(
                    tuple(one.text for one in suggestions),
                    tuple(one.score for one in suggestions),
                    inputs[index].items,
                    written=tuple(one.written for one in suggestions),
                ),
            )

    def _featurize(self, requests: Sequence[SuggestRequest]) -> list[Request]:
        """The requests with their current features."""
        items = self.live.requests([(one.prefix, one.history, one.minutes) for one in requests])
        return [
            Request(one.prefix, one.history, profile=one.profile, items=now)
            for one, now in zip(requests, items, strict=True)
        ]

    def _completions(self, prefix: str, most: int) -> tuple[int, list[str]]:
        texts, passes = self.live.complete(prefix, most), self.suggester.passes
        return len(texts), texts if passes is None else [text for text in texts if passes(text)]

    def refresh(self) -> None:
        """Counts new events; new queries get their vectors and rows."""
        super().refresh()
        first, end = self._filled, min(len(self.live), len(self.tables.vectors) - 1)
        if end > first:
            numbers = range(first, end)
            self.tables.add(numbers, [self.live.text(n) for n in numbers], self._encode)
            self.suggester.refresh(vars(self.tables), first + 1, end + 1)
            self._filled = end


def lengths(spec: FeatureSpec) -> tuple[int, ...]:
    """Compiled input lengths; the longest fits every prefix and profile."""
    longest = spec.input_length // 2 + 2 + spec.profile * (spec.input_length // 4)
    longest = -(-min(longest, spec.input_length) // _STEP) * _STEP
    return (*(length for length in _LENGTHS if length < longest), longest)
