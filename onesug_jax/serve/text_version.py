"""A version of a text model, which reads related queries and history as text, as in PAPER.md.

Popularity is that of the log; current searches change no list before the next update.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onesug_jax.decode.closed_set import Filter
from onesug_jax.decode.shapes import Shapes
from onesug_jax.decode.suggester import Suggester, Suggestion
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import BEAM, POPULAR, Pace
from onesug_jax.serve.requests import SuggestRequest, SuggestResult
from onesug_jax.serve.version import ModelVersion
from onesug_jax.tasks.features import Request, make_requests

_UNKNOWN = "zx"  # a text that is not indexed, so the text encoder has to encode it


class TextVersion(ModelVersion):
    """A version that makes lists by beam search.

    Args:
      name, path: as `ModelVersion`.
      suggester: the beam search.
      finder: related queries and vectors of requests.
      ids: number of an indexed query -> its semantic id; None: the model has none.
      settings: as `ModelVersion`.
    """

    LEVELS = (BEAM, POPULAR)

    def __init__(
        self,
        name: str,
        path: str,
        suggester: Suggester,
        finder: RelatedQueries,
        *,
        ids: Callable[[int], tuple[int, ...]] | None = None,
        **settings,
    ):
        self.suggester, self.finder, self._ids = suggester, finder, ids
        super().__init__(name, path, **settings)

    @property
    def history(self) -> int:
        """See `ModelVersion`."""
        return self.suggester.featurizer.spec.history

    @property
    def longest(self) -> int:
        """See `ModelVersion`."""
        return self.suggester.config.returned

    def _show(self, shown: Filter) -> None:
        if self.suggester.shown != shown:
            self.suggester.show(shown)

    def warmup(self, config: EngineConfig, pace: Pace, stop: Callable[[], bool]) -> Iterator[None]:
        """See `ModelVersion`."""
        shapes = config.shapes(self.suggester.featurizer.spec.input_length)
        sizes, lengths = shapes.batch_sizes, shapes.lengths
        done = set()
        self.finder.text_vector(_UNKNOWN), self.finder.meant(_UNKNOWN)
        self.suggester.shapes = first = Shapes(sizes[-1:], lengths[-1:])
        for step in (first, Shapes(sizes, lengths[-1:]), shapes):
            for shape in itertools.product(step.batch_sizes, step.lengths):
                if stop():
                    return
                if shape not in done:
                    done.add(shape)
                    pace.time(BEAM, shape[0], self.suggester.warmup, *shape)
            self.suggester.shapes = step
            yield
        for times in (8, 16, 32):  # the text encoder's lengths
            if not stop():
                self.finder.text_vector(" ".join([_UNKNOWN] * times))

    def _answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        fields = [(one.prefix, one.history, one.profile) for one in requests]
        inputs = make_requests(self.finder, *map(list, zip(*fields, strict=True)))
        yield from enumerate(map(self._result, inputs, self.suggester.suggest(inputs)))

    def _completions(self, prefix: str, most: int) -> tuple[int, list[str]]:
        complete = self.finder.completions.complete
        texts = complete(prefix, most)
        if not texts:
            corrected = self.finder.meant(prefix)
            prefixes = sorted(corrected, key=lambda text: (-corrected[text], text))
            texts = list(dict.fromkeys(t for one in prefixes for t in complete(one, most)))
        return len(texts), [texts[n] for n in np.flatnonzero(self._may_show(texts))]

    def _may_show(self, texts: Sequence[str]) -> np.ndarray:
        if self._shown == Filter():
            return np.ones(len(texts), bool)
        count = self.finder.completions.count
        return self._shown.of(texts, np.array([count(text) for text in texts], np.int64))

    def _result(self, request: Request, suggestions: Sequence[Suggestion]) -> SuggestResult:
        """One list, with the related queries that may be shown."""
        at = np.flatnonzero(self._may_show(request.related)).tolist()
        related = [request.related[n] for n in at]
        number_of = self.finder.number_of
        return SuggestResult(
            tuple(one.text for one in suggestions),
            tuple(one.score for one in suggestions),
            related=tuple(related),
            ids=tuple(self._ids(number_of(text)) for text in related) if self._ids else (),
        )
