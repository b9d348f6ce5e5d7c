"""One published version of the model, ready to answer at every degradation level.

A version and its cache are replaced as one object, so a batch ends with the model it began with.
Within a version, only the blocked terms and the live counts of queries change.
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

_CACHE_SIZE = 4096  # finished lists of requests without a history
_CACHE_SECONDS = 60.0  # longest time that a list is cached while counts change


class ModelVersion(abc.ABC):
    """A version of WORK_DIR's model.

    Args:
      name: "0000" for the original WORK_DIR. path: its work directory.
      profile: names of the log's profile columns, in the order of the model's input.
      blocked: a file of terms that no suggestion may contain, or None. It may change at any time.
      least_count: fewest searches of a suggestion.
      live: current counts; None: popularity is that of the log.

    Attributes:
      LEVELS: the degradation levels of this kind of model, best first.
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
        self._seen = self._stamp  # at the latest check of the file
        self._shown = Filter.read(blocked, least_count)
        self._show(self._shown)

    # ------------------------------------------------------------------ per kind of model

    @property
    @abc.abstractmethod
    def history(self) -> int:
        """The most history queries that the model reads."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """The most suggestions of a list."""

    @abc.abstractmethod
    def warmup(self, config: EngineConfig, pace: Pace, stop: Callable[[], bool]) -> Iterator[None]:
        """Compiles and times the shapes of requests; returns early once `stop()` is true.

        After the first step, every request can be served in the largest shape. Each further step
        adds smaller shapes.
        """

    @abc.abstractmethod
    def _answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        """`answers` of distinct requests by the model."""

    @abc.abstractmethod
    def _completions(self, prefix: str, most: int) -> tuple[int, list[str]]:
        """The `most` most searched completions of a prefix, typing errors corrected: how many
        exist, and those that may be shown.
        """

    @abc.abstractmethod
    def _show(self, shown: Filter) -> None:
        """Restricts all later lists to suggestions that pass the filter."""

    # ------------------------------------------------------------------ common to all kinds

    def answers(
        self, requests: Sequence[SuggestRequest], level: str
    ) -> Iterator[tuple[int, SuggestResult]]:
        """Yields (index of the request, its full list) as soon as each list is finished. Equal
        requests share one computation.
        """
        indices: dict[tuple, list[int]] = collections.defaultdict(list)
        for index, one in enumerate(requests):
            indices[one.prefix, one.history, one.profile, one.minutes].append(index)
        groups = list(indices.values())
        distinct = [requests[first] for first, *_ in groups]
        results: Iterator[tuple[int, SuggestResult]]
        if level == POPULAR:
            results = ((n, self.popular(one.prefix)) for n, one in enumerate(distinct))
        else:
            results = self._answers(distinct, level)
        for number, result in results:
            yield from ((index, result) for index in groups[number])

    def popular(self, prefix: str) -> SuggestResult:
        """The most searched completions of a prefix, typing errors corrected."""
        limit = most = self.longest
        while True:  # raise the limit until enough of the completions may be shown
            count, texts = self._completions(prefix, limit)
            if len(texts) >= most or count < limit:
                return SuggestResult(tuple(texts[:most]), (None,) * min(len(texts), most))
            limit *= 4

    def results(self, requests: Sequence[SuggestRequest], level: str) -> list[SuggestResult]:
        """The lists of `answers` in the order of the requests."""
        return [result for _, result in sorted(self.answers(requests, level), key=lambda a: a[0])]

    def levels(self, config: EngineConfig) -> tuple[str, ...]:
        """The degradation levels in use, best first."""
        return tuple(level for level in config.levels if level in self.LEVELS)

    def read_terms(self) -> bool:
        """Reads the blocked terms if their file has changed; returns whether it was read.

        The file may be in the middle of a write. It is read only if two checks in a row find it
        unchanged, and again if it changed during the read. An empty file unblocks nothing: editors
        empty a file before they write it, and a full disk leaves it empty.

        Raises:
          UserError: it is empty, cannot be read, or would block everything; the previous terms
            remain in force.
        """
        path, least_count = self._terms
        stamp, before = _stamp(path), self._seen
        self._seen = stamp
        if stamp == self._stamp or stamp != before:
            return False
        self._stamp = stamp
        if path and os.path.isfile(path) and not os.path.getsize(path) and self._shown.blocked:
            raise UserError(
                f"{path}: empty; the previous blocked terms remain in force. To block nothing, "
                "write a comment line, # nothing"
            )
        shown = Filter.read(path, least_count)
        if _stamp(path) != stamp:
            self._stamp = None  # it changed during the read: the next checks decide
            return False
        self._show(shown)
        self._shown = shown
        self.cache = self._new_cache()  # unfinished lists go to the previous cache
        return True

    def refresh(self) -> None:
        """Counts the searches since the last call."""
        if self.live is not None:
            self.live.poll_quietly()

    def close(self) -> None:
        """Closes the live counts."""
        if self.live is not None:
            self.live.close()

    def _new_cache(self) -> Cache:
        seconds = math.inf if self.live is None else min(self.live.freshness, _CACHE_SECONDS)
        return Cache(_CACHE_SIZE, seconds)


def _stamp(path: str | None) -> tuple | None:
    """Values that change when the file changes; None if there is no file."""
    try:
        stat = os.stat(path) if path else None
    except OSError:
        return None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)
