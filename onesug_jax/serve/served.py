"""One published version of the model, ready to answer: lists at every rung, caches, what is shown.

A version is never changed, only replaced by another one as a whole, so a batch that has begun ends
with the model it began with, and its caches go with it.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onesug_jax.decode.known import Filter
from onesug_jax.decode.shapes import Shapes
from onesug_jax.decode.suggester import Suggester, Suggestion
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.ladder import POPULAR, Pace
from onesug_jax.serve.live import LiveCounts
from onesug_jax.tasks.features import Request, make_requests

_STRANGE = "zx"  # no query, so that the text encoder is loaded for it


@dataclass(frozen=True)
class Ask:
    """One request; text normalised as `logs.schema` does it.

    Attributes:
      prefix: what stands in the search box.
      history: the user's queries, newest first.
      minutes: how long ago each of them was searched; none: just now.
      profile: static profile values, in the order of the log's columns.
      k: how many suggestions are wanted.
      within: seconds from now until the answer is of no use any more; None: the engine's default.
    """

    prefix: str
    history: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    k: int = 16
    within: float | None = None
    minutes: tuple[float, ...] = ()

    @property
    def key(self) -> tuple | None:
        """What a finished list may be kept under; None where it is this user's own."""
        return None if self.history else (self.prefix, self.profile)


@dataclass(frozen=True)
class Listed:
    """One list and what it was made from.

    Attributes:
      texts, scores: suggestions, best first, and their log-probabilities (None: most popular).
      related, worth, ids: what the model was shown of the prefix, its grades and semantic ids.
    """

    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    related: tuple[str, ...] = ()
    worth: tuple[int, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()


class Recent:
    """The values used last, at most `size`, each for some seconds; safe for several threads."""

    def __init__(self, size: int, seconds: float = math.inf):
        self._size, self._seconds = size, seconds
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value, now the newest; None where there is none."""
        with self._lock:
            value, until = self._values.get(key, (None, 0.0))
            if until < time.monotonic():
                return None
            self._values.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value; the one used longest ago makes room."""
        with self._lock:
            self._values[key] = value, time.monotonic() + self._seconds
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


class Served:
    """A version of WORK_DIR's model.

    Args:
      version: its name, "0000" for WORK_DIR as it was made. path: its work directory.
      suggester: writes lists. known: what requests are shown beside their words.
      profile: names of the log's profile columns, in the order that the model knows.
      lists: how many finished lists of history-less requests are kept.
      blocked: the file of terms that no suggestion may hold, which may change at any time, or None.
      least_count: how often a suggestion was searched at least.
      ids: number of a known query -> its semantic id; None where there are none.
      live: what people search now; None: popularity is that of the log.
    """

    def __init__(
        self,
        version: str,
        path: str,
        suggester: Suggester,
        known: RelatedQueries,
        *,
        profile: Sequence[str] = (),
        lists: int = 4096,
        blocked: str | None = None,
        least_count: int = 0,
        ids: Callable[[int], tuple[int, ...]] | None = None,
        live: LiveCounts | None = None,
    ):
        self.live = live
        self.version, self.path = version, path
        self.suggester, self.known, self.profile = suggester, known, tuple(profile)
        self._lists, self._ids = lists, ids
        self.kept = self._no_lists()
        self._terms, self._stamp = (blocked, least_count), _stamp(blocked)
        self._shown = Filter.read(blocked, least_count)
        if suggester.shown != self._shown:  # the file changed while the model was being loaded
            suggester.show(self._shown)

    @property
    def history(self) -> int:
        """How many of a user's queries a request should bring."""
        return self.suggester.featurizer.spec.history

    @property
    def longest(self) -> int:
        """The most suggestions of a list."""
        return self.suggester.config.returned

    def prepare(
        self, modes: Iterable[str], shapes: Shapes, pace: Pace, stop: Callable[[], bool]
    ) -> Iterator[None]:
        """Compiles what requests are served in, and times it; goes on when asked to.

        After the first step every request can be served, in the largest batch and length; each
        further one adds smaller ones, until all of `shapes` are there.
        """
        modes = tuple(dict.fromkeys((*modes, "beam")))  # beams answer where there is no pool
        sizes, lengths, nodes = shapes.batch_sizes, shapes.lengths, shapes.nodes
        done = set()
        self.known.text_vector(_STRANGE), self.known.meant(_STRANGE)
        self.suggester.shapes = first = Shapes(sizes[-1:], lengths[-1:], nodes)
        for step in (first, Shapes(sizes, lengths[-1:], nodes), shapes):
            for mode in modes:
                rooms = (0,) if mode == "beam" else nodes or ()
                for shape in itertools.product(step.batch_sizes, step.lengths, rooms):
                    if stop():
                        return
                    if (mode, shape) in done:
                        continue
                    done.add((mode, shape))
                    self.suggester.rehearse(mode, *shape)
                    began = time.perf_counter()
                    self.suggester.rehearse(mode, *shape)
                    pace.note(mode, shape[0], time.perf_counter() - began)
            self.suggester.shapes = step
            yield
        for times in (8, 16, 32):  # the encoder's lengths, for texts that nobody knows
            if not stop():
                self.known.text_vector(" ".join([_STRANGE] * times))

    def lists(self, asks: Sequence[Ask], rung: str) -> list[Listed]:
        """One list an ask, as long as the model makes them. Equal asks are answered once."""
        if rung == POPULAR:
            return [self.popular(ask.prefix) for ask in asks]
        wanted = [(ask.prefix, ask.history, ask.profile, ask.minutes) for ask in asks]
        distinct = list(dict.fromkeys(wanted))
        candidates = 0 if rung == "beam" else self.suggester.scoring.candidates
        prefixes, histories, profiles, minutes = map(list, zip(*distinct, strict=True))
        requests = make_requests(self.known, prefixes, histories, profiles, candidates, minutes)
        found = self.suggester.suggest(requests, mode=rung)
        made = {
            one: self._listed(request, suggestions)
            for one, request, suggestions in zip(distinct, requests, found, strict=True)
        }
        return [made[one] for one in wanted]

    def popular(self, prefix: str) -> Listed:
        """The most searched queries that start with what was typed, or may have been meant."""
        texts = self._completed(prefix)
        if not texts:
            meant = self.known.meant(prefix)
            begun = sorted(meant, key=lambda text: (-meant[text], text))
            texts = list(dict.fromkeys(text for start in begun for text in self._completed(start)))
        texts = texts[: self.longest]
        return Listed(tuple(texts), (None,) * len(texts))

    def _completed(self, prefix: str) -> list[str]:
        complete = self.known.completions.complete if self.live is None else self.live.complete
        asked = most = self.longest
        while True:  # however many of the most searched are hidden
            texts = complete(prefix, asked)
            passed = [texts[n] for n in np.flatnonzero(self._may_show(texts))]
            if len(passed) >= most or len(texts) < asked:
                return passed[:most]
            asked *= 4

    def _may_show(self, texts: Sequence[str]) -> np.ndarray:
        if self._shown == Filter():
            return np.ones(len(texts), bool)
        counts = np.array([self.known.completions.count(text) for text in texts], np.int64)
        if self.live is not None and len(texts):
            counts = np.maximum(counts, self.live.searches(texts).max(axis=1).astype(np.int64))
        return self._shown.of(texts, counts)

    def _listed(self, request: Request, suggestions: Sequence[Suggestion]) -> Listed:
        """What is told of one list; of the related queries those that may be shown."""
        related = request.related
        at = np.flatnonzero(self._may_show(related)).tolist()
        return Listed(
            tuple(one.text for one in suggestions),
            tuple(one.score for one in suggestions),
            tuple(related[n] for n in at),
            (),
            tuple(self._ids(self.known.number_of(related[n])) for n in at) if self._ids else (),
        )

    def read_terms(self) -> bool:
        """Reads the blocked terms if their file has changed; True where it had.

        Raises:
          UserError: it cannot be read, or would block everything; the terms of before stay in
            force.
        """
        stamp = _stamp(self._terms[0])
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        shown = Filter.read(*self._terms)
        self.suggester.show(shown)
        self._shown = shown
        self.kept = self._no_lists()  # lists still being made go to the one before
        return True

    def _no_lists(self) -> Recent:
        return Recent(self._lists, math.inf if self.live is None else self.live.freshness)


def _stamp(path: str | None) -> tuple | None:
    """What changes when a file does; None where there is none."""
    try:
        stat = os.stat(path) if path else None
    except OSError:
        return None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)
