"""One published version of the model, ready to answer at every degradation level.

A version is only replaced by another one as a whole, so a batch that has begun ends with the model
it began with, and its cache goes with it. What changes within a version is which terms are blocked,
and, where the service counts, the counts of queries.
"""

from __future__ import annotations

import abc
import collections
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from onesug_jax.decode.closed_set import Filter
from onesug_jax.errors import UserError
from onesug_jax.serve.cache import Cache
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import POPULAR, Pace
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.requests import SuggestRequest, SuggestResult

_CACHED = 4096  # finished lists of requests without a history
_MOST_SECONDS = 60.0  # that a list is cached while counts move


class ModelVersion(abc.ABC):
    """A version of WORK_DIR's model.

    Args:
      name: "0000" for WORK_DIR as it was made. path: its work directory.
      profile: names of the log's profile columns, in the order that the model knows.
      blocked: the file of terms that no suggestion may hold, which may change at any time, or None.
      least_count: how often a suggestion was searched at least.
      live: what people search now; None: popularity is that of the log.

    Attributes:
      LEVELS: the degradation levels it can answer at, best first.
      cache: finished lists.
    """

    LEVELS: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        name: str,
        path: str,
        *,
        profile: Sequence[str] = (),
        blocked: str | None = None,
        least_count: int = 0,
        live: LiveCounts | None = None,
    ):
        self.name, self.path, self.profile, self.live = name, path, tuple(profile), live
        self.cache = self._new_cache()
        self._terms, self._stamp = (blocked, least_count), _stamp(blocked)
        self._seen = self._stamp  # of the file at the latest look
        self._shown = Filter.read(blocked, least_count)
        self._show(self._shown)

    # ------------------------------------------------------------------ of each kind of model

    @property
    @abc.abstractmethod
    def history(self) -> int:
        """How many of a user's queries a request should bring."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """The most suggestions of a list."""

    @abc.abstractmethod
    def warmup(self, config: EngineConfig, pace: Pace, stop: Callable[[], bool]) -> Iterator[None]:
        """Compiles what requests are served in, and times it; ends early where `stop` says so.

        After the first step every request can be served, in the largest shape; each further one
        adds smaller ones.
        """

    @abc.abstractmethod
    def _answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        """`answers` of different requests by the model."""

    @abc.abstractmethod
    def _begun(self, prefix: str, most: int) -> tuple[int, list[str]]:
        """Of the `most` most searched queries that start with what was typed, or may have been
        meant: how many there are, and those that may be shown.
        """

    @abc.abstractmethod
    def _show(self, shown: Filter) -> None:
        """From now on, lists hold only what passes."""

    # ------------------------------------------------------------------ of all

    def answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        """One list a request, as long as the model makes them, with the request's place; each as
        soon as it is finished. Equal requests are answered once.
        """
        places: dict[tuple, list[int]] = collections.defaultdict(list)
        for place, one in enumerate(requests):
            places[one.prefix, one.history, one.profile, one.minutes].append(place)
        same = list(places.values())
        different = [requests[first] for first, *_ in same]
        found: Iterator[tuple[int, SuggestResult]]
        if level == POPULAR:
            found = ((n, self.popular(one.prefix)) for n, one in enumerate(different))
        else:
            found = self._answers(different, level)
        for number, result in found:
            yield from ((place, result) for place in same[number])

    def popular(self, prefix: str) -> SuggestResult:
        """The most searched queries that start with what was typed, or may have been meant."""
        asked = most = self.longest
        while True:  # however many of the most searched are hidden
            found, texts = self._begun(prefix, asked)
            if len(texts) >= most or found < asked:
                return SuggestResult(tuple(texts[:most]), (None,) * min(len(texts), most))
            asked *= 4

    def results(self, requests: Sequence[SuggestRequest], level: str) -> list[SuggestResult]:
        """The lists of `answers` in the order of the requests."""
        found = dict(self.answers(requests, level))
        return [found[place] for place in range(len(requests))]

    def levels(self, config: EngineConfig) -> tuple[str, ...]:
        """The degradation levels in use, best first."""
        return tuple(level for level in config.levels if level in self.LEVELS)

    def read_terms(self) -> bool:
        """Reads the blocked terms if their file has changed; True where it had.

        A file may be caught while it is written. It is read once it was the same at two looks in a
        row, and must be the same after it was read. A file without a byte unblocks nothing: editors
        empty a file before they write it, and a full disk leaves it so.

        Raises:
          UserError: it is empty, cannot be read, or would block everything; the terms of before
            stay in force.
        """
        path, least_count = self._terms
        stamp, before = _stamp(path), self._seen
        self._seen = stamp
        if stamp == self._stamp or stamp != before:
            return False
        self._stamp = stamp
        if path and os.path.isfile(path) and not os.path.getsize(path) and self._shown.blocked:
            raise UserError(
                f"{path}: empty; the blocked terms of before stay in force. To block nothing, "
                "write a line of comment, # nothing"
            )
        shown = Filter.read(path, least_count)
        if _stamp(path) != stamp:
            self._stamp = None  # written meanwhile: the next looks decide
            return False
        self._show(shown)
        self._shown = shown
        self.cache = self._new_cache()  # lists still being made go to the one before
        return True

    def refresh(self) -> None:
        """Takes in what people searched since the last call; for the watching thread."""
        if self.live is not None:
            self.live.poll_quietly()

    def close(self) -> None:
        """Ends what the version reads beside its model."""
        if self.live is not None:
            self.live.close()

    def _new_cache(self) -> Cache:
        seconds = math.inf if self.live is None else min(self.live.freshness, _MOST_SECONDS)
        return Cache(_CACHED, seconds)


def _stamp(path: str | None) -> tuple | None:
    """What changes when a file does; None where there is none."""
    try:
        stat = os.stat(path) if path else None
    except OSError:
        return None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)
