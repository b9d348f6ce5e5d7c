"""The engine: requests that arrive together become one batch, and every one of them gets an answer.

    submit -> cached list? -> Answer at once
           -> too long a wait, as the model's pace says, or no place? -> Full at once
           -> queue -> batch (at most `max_batch`, waiting at most `max_wait_ms`)
                       past its deadline: dropped before the model sees it
                       degradation level by backlog and deadline -> results -> Answer

One thread runs the model. Another takes in what people searched. A third loads the version of
WORK_DIR that is in use, compiles its shapes ahead of time, and watches: when an update publishes
the next version (or a rollback the one before) it is loaded and compiled beside the old one, and
takes its place between two batches. No request waits for it, and none is lost. This file knows no
HTTP.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from onesug_jax.errors import UserError, plain
from onesug_jax.serve import heap
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.levels import POPULAR, Pace
from onesug_jax.serve.metrics import Metrics
from onesug_jax.serve.requests import Answer, Full, Late, NotReady, SuggestRequest, SuggestResult
from onesug_jax.serve.version import ModelVersion
from onesug_jax.serve.waiting import Waiting, WaitingRoom

_NICE = 5  # of the model's threads beside the one that answers HTTP
_RETRY_SECONDS = 30.0  # between attempts at a version that could not be loaded


class Engine:
    """Answers requests with the version of the model that is in use.

    Args:
      in_use: where the version in use lies.
      load: opens the version that lies there.
      config: batching, caches, degradation levels.
      say: where one-line messages go.
    """

    def __init__(
        self,
        in_use: Callable[[], str],
        load: Callable[[str], ModelVersion],
        config: EngineConfig,
        *,
        say: Callable[[str], None] = print,
    ):
        self.config, self.metrics = config, Metrics()
        self._in_use, self._load, self._say = in_use, load, say
        self._pace = Pace(config.batch_sizes)
        self._room = WaitingRoom(config, self._pace)
        self._current: ModelVersion | None = None
        self._closed = threading.Event()
        self._ready = threading.Event()
        self.warming = True  # shapes are still being compiled, for the first version
        self.failure: BaseException | None = None  # why the first version could not be loaded
        self._threads = [
            threading.Thread(target=_behind_http, args=(run,), name=name, daemon=True)
            for name, run in (
                ("watch", self._watch),
                ("refresh", self._refresh),
                ("model", self._run),
            )
        ]

    # ------------------------------------------------------------------ from outside

    def start(self) -> Engine:
        """Begins to load; returns at once."""
        for thread in self._threads:
            thread.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Waits until requests are answered; raises what failed the first version's loading."""
        self._ready.wait(timeout)
        if self.failure is not None:
            raise self.failure
        return self.ready

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._current is not None and not self._closed.is_set()

    @property
    def version(self) -> ModelVersion:
        """The version in use.

        Raises:
          NotReady: none is loaded yet.
        """
        if self._current is None:
            raise NotReady("the model is being loaded and compiled")
        return self._current

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._room)

    @property
    def levels(self) -> tuple[str, ...]:
        """The degradation levels in use, best first; NotReady as `version`."""
        return self.version.levels(self.config)

    def crowded(self, inside: int = 0) -> float:
        """Seconds after which to ask again, where any request that comes now is refused; else 0.
        `inside`: requests that have come and have no answer yet, submitted or not.
        """
        if not self.ready:
            return 0.0  # `submit` says what is the matter
        after = self._room.crowded(self.levels, inside=inside)
        if after:
            self.metrics.unanswered("refused")
        return after

    def submit(self, request: SuggestRequest) -> Future:
        """Asks for a list; the Future holds an Answer, or fails with Late.

        Raises:
          Full: it would wait too long for an answer, or there is no place in the queue.
          NotReady: no version is loaded yet, or the engine is closing.
        """
        version = self.version
        levels = version.levels(self.config)
        result = version.cache.get(request.key) if request.key else None
        self.metrics.lists(hit=result is not None)
        if result is not None:
            future: Future = Future()
            future.set_result(self._answer(request, result, levels[0], version, cached=True))
            return future
        try:
            return self._room.add(request, levels)
        except Full:
            self.metrics.unanswered("refused")
            raise

    def popular(self, request: SuggestRequest) -> Answer:
        """The last level, whatever the settings: for comparison, and not counted as an answer.
        NotReady as `version`.
        """
        version = self.version
        return _cut(request, version.popular(request.prefix), POPULAR, version)

    def close(self) -> None:
        """Accepts nothing more, answers what was accepted, and ends."""
        self._closed.set()
        self._room.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        gc.unfreeze()

    # ------------------------------------------------------------------ the model's thread

    def _run(self) -> None:
        while groups := self._room.take(lambda: self.levels):
            for level, group in groups:
                self._serve(level, group)

    def _serve(self, level: str, group: Sequence[Waiting]) -> None:
        """Answers a group at one level, without those whose deadline passed or client has gone."""
        began = time.monotonic()
        waiting = []
        for one in group:
            if not one.future.set_running_or_notify_cancel():
                continue
            if one.deadline < began:
                self.metrics.unanswered("late")
                one.future.set_exception(Late("the deadline passed before the model was asked"))
            else:
                waiting.append(one)
        if not waiting:
            return
        version = self.version
        cache = version.cache  # of the terms in force now: an exchange of them begins another
        best = version.levels(self.config)[0]
        left = dict(enumerate(waiting))  # not answered yet

        def answer(place: int, result: SuggestResult, level: str) -> None:
            one = left.pop(place)
            if one.request.key and level == best:
                cache.put(one.request.key, result)
            took = time.monotonic() - began
            how = dict(waited=began - one.arrived, took=took, batch=len(waiting))
            one.future.set_result(self._answer(one.request, result, level, version, **how))

        try:
            for place, result in version.answers([one.request for one in waiting], level):
                answer(place, result, level)
        except Exception as error:
            # Its message may hold what somebody typed; where it happened does not.
            where = "".join(traceback.format_tb(error.__traceback__))
            self._say(f"serve: {len(left)} at {level!r} failed: {type(error).__name__}\n{where}")
            self.metrics.unanswered("failed")
            if POPULAR in self.levels and level != POPULAR:
                with contextlib.suppress(Exception):  # reported below, as the first
                    rest = list(left)
                    found = version.answers([left[place].request for place in rest], POPULAR)
                    for number, result in found:
                        answer(rest[number], result, POPULAR)
            failure = RuntimeError(f"{level} failed: {type(error).__name__}")  # no text of it
            for one in left.values():
                one.future.set_exception(failure)
            return
        took = time.monotonic() - began
        if level == POPULAR:  # nothing is batched: each takes the same
            for size in self.config.batch_sizes:
                self._pace.note(level, size, took * size / len(waiting))
        else:
            self._pace.note(level, len(waiting), took)
            self.metrics.batch(level, len(waiting), took)

    def _answer(
        self, request: SuggestRequest, result: SuggestResult, level: str, version, **how
    ) -> Answer:
        answer = _cut(request, result, level, version, **how)
        self.metrics.answered(level, answer.waited, answer.took, cached=answer.cached)
        return answer

    # ------------------------------------------------------------------ the refreshing thread

    def _refresh(self) -> None:
        """Takes in what this and other servers were sent, also while shapes are compiled."""
        failed = ""
        while not self._closed.wait(self.config.watch_seconds):
            version = self._current
            try:
                if version is not None:
                    version.refresh()
                failed = ""
            except Exception as error:  # of a version that is being replaced, for one
                message = f"serve: new events are not counted: {type(error).__name__}"
                if version is self._current and message != failed:
                    self._say(message)
                    failed = message

    # ------------------------------------------------------------------ the watching thread

    def _watch(self) -> None:
        """Loads the version in use, and again whenever another one is."""
        failed, since = "", 0.0
        while True:
            wanted = ""
            try:
                wanted = self._in_use()
                there = self._current and self._current.path == wanted
                again = wanted != failed or time.monotonic() - since > _RETRY_SECONDS
                if not there and again:
                    self._swap(wanted)
                    failed = ""
                if self._current is not None and self._current.read_terms():
                    self._say("serve: blocked terms read again")
            except Exception as error:
                failed, since = wanted, time.monotonic()
                if self._current is None:
                    self.failure = error
                    self._ready.set()
                    return
                self.metrics.swap_failed()
                message = plain(error) if isinstance(error, UserError) else repr(error)
                self._say(f"serve: {wanted or 'the version in use'}: {message}")
            if self._closed.wait(self.config.watch_seconds):
                return

    def _swap(self, path: str) -> None:
        """Loads and compiles the version at `path`, then puts it in use."""
        began = time.monotonic()
        with heap.long_lived():
            version = self._load(path)
        if not version.levels(self.config):
            raise UserError(
                f"EngineConfig.levels = {list(self.config.levels)}: this model answers at "
                f"{', '.join(version.LEVELS)}; name some of these."
            )
        steps = version.warmup(self.config, self._pace, self._closed.is_set)
        if self._current is None:
            next(steps, None)  # nothing else answers: in use as soon as it can
        else:
            collections.deque(steps, maxlen=0)
        if self._closed.is_set():
            return
        before, self._current = self._current, version
        if before is not None:
            before.close()
        took = time.monotonic() - began
        self.metrics.version(version.name, took)
        self._say(f"serve: version {version.name} is in use, ready after {took:.1f} s")
        self._ready.set()
        collections.deque(steps, maxlen=0)
        self.warming = False
        if before is not None:
            del before
            self._closed.wait(self.config.watch_seconds)  # batches that it has begun end
            gc.unfreeze()
            gc.collect()  # the one time that requests wait for it
        gc.freeze()


def _behind_http(run: Callable[[], None]) -> None:
    """Runs with less priority than the thread that answers HTTP, and so do the threads that XLA
    starts from here: where cores are few, refusals and finished lists wait for no matrix.
    """
    if sys.platform == "linux":  # elsewhere a priority is that of the process
        here = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*here, os.getpriority(*here) + _NICE)
    run()


def _cut(
    request: SuggestRequest, result: SuggestResult, level: str, version: ModelVersion, **how
) -> Answer:
    """The answer with as many suggestions as were asked for."""
    k = request.k
    if len(result.texts) > k:
        texts, scores, written = result.texts[:k], result.scores[:k], result.written[:k]
        result = replace(result, texts=texts, scores=scores, written=written)
    return Answer(result, level, version.name, **how)
