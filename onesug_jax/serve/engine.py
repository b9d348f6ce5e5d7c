"""The engine: batches concurrent requests and answers each of them.

    submit -> cached list? -> Answer at once
           -> queue full, or expected wait too long? -> Full at once
           -> queue -> batch (at most `max_batch`, waiting at most `max_wait_ms`)
                       past its deadline: dropped before the model runs
                       degradation level by backlog and deadline -> results -> Answer

One thread runs the model. Another counts new searches. A third loads the version of WORK_DIR that
is in use, compiles its shapes ahead of time, and watches: when an update publishes the next version
(or a rollback the previous one), it loads and compiles that one beside the old one, and exchanges
them between two batches. No request waits for it, and none is lost.
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
from onesug_jax.serve.waiting import RequestQueue, Waiting

_NICE = 5  # added to the niceness of the engine's threads
_RETRY_SECONDS = 30.0  # between attempts to load a version after a failure


class Engine:
    """Answers requests with the version of the model that is in use.

    Args:
      in_use: returns the path of the version in use.
      load: opens the version at a path.
      config: batching, caches, degradation levels.
      say: prints one-line messages.
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
        self._queue = RequestQueue(config, self._pace)
        self._current: ModelVersion | None = None
        self._closed = threading.Event()
        self._ready = threading.Event()
        self.warming = True  # shapes of the first version are still being compiled
        self.failure: BaseException | None = None  # why the first version could not be loaded
        self._threads = [
            threading.Thread(target=_run_at_low_priority, args=(run,), name=name, daemon=True)
            for name, run in (
                ("watch", self._watch),
                ("refresh", self._refresh),
                ("model", self._run),
            )
        ]

    # ------------------------------------------------------------------ calls from any thread

    def start(self) -> Engine:
        """Starts loading; returns at once."""
        for thread in self._threads:
            thread.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Waits until requests are answered; raises the error of loading the first version."""
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
        """The number of requests in the queue."""
        return len(self._queue)

    @property
    def levels(self) -> tuple[str, ...]:
        """The degradation levels in use, best first; raises NotReady as `version`."""
        return self.version.levels(self.config)

    def crowded(self, inside: int = 0) -> float:
        """Seconds after which to retry if every new request would be refused; else 0.
        `inside`: arrived requests without an answer, submitted or not.
        """
        if not self.ready:
            return 0.0  # `submit` raises the reason
        after = self._queue.crowded(self.levels, inside=inside)
        if after:
            self.metrics.unanswered("refused")
        return after

    def submit(self, request: SuggestRequest) -> Future:
        """Requests a list; the Future holds an Answer, or fails with Late.

        Raises:
          Full: the wait would be too long, or the queue is full.
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
            return self._queue.add(request, levels)
        except Full:
            self.metrics.unanswered("refused")
            raise

    def popular(self, request: SuggestRequest) -> Answer:
        """The most popular completions, for comparison; not counted as an answer. Raises NotReady
        as `version`.
        """
        version = self.version
        return _cut(request, version.popular(request.prefix), POPULAR, version)

    def close(self) -> None:
        """Refuses new requests, answers the accepted ones, and stops the threads."""
        self._closed.set()
        self._queue.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        gc.unfreeze()

    # ------------------------------------------------------------------ the model's thread

    def _run(self) -> None:
        while groups := self._queue.take(lambda: self.levels):
            for level, group in groups:
                self._serve(level, group)

    def _serve(self, level: str, group: Sequence[Waiting]) -> None:
        """Answers a group at one level, except cancelled and late requests."""
        began = time.monotonic()
        waiting = []
        for one in group:
            if not one.future.set_running_or_notify_cancel():
                continue
            if one.deadline < began:
                self.metrics.unanswered("late")
                one.future.set_exception(Late("the deadline passed before the model ran"))
            else:
                waiting.append(one)
        if not waiting:
            return
        version = self.version
        cache = version.cache  # changed blocked terms replace it with another
        best = version.levels(self.config)[0]
        left = dict(enumerate(waiting))  # not answered yet

        def answer(index: int, result: SuggestResult, level: str) -> None:
            one = left.pop(index)
            if one.request.key and level == best:
                cache.put(one.request.key, result)
            took = time.monotonic() - began
            details = dict(waited=began - one.arrived, took=took, batch=len(waiting))
            one.future.set_result(self._answer(one.request, result, level, version, **details))

        try:
            for index, result in version.answers([one.request for one in waiting], level):
                answer(index, result, level)
        except Exception as error:
            # The message may contain a user's text; the traceback does not.
            trace = "".join(traceback.format_tb(error.__traceback__))
            self._say(
                f"serve: {len(left)} requests at level {level!r} failed: {type(error).__name__}\n"
                f"{trace}"
            )
            self.metrics.unanswered("failed")
            if POPULAR in self.levels and level != POPULAR:
                with contextlib.suppress(Exception):  # the futures fail below
                    rest = list(left)
                    results = version.answers([left[index].request for index in rest], POPULAR)
                    for number, result in results:
                        answer(rest[number], result, POPULAR)
            failure = RuntimeError(f"{level} failed: {type(error).__name__}")  # without its message
            for one in left.values():
                one.future.set_exception(failure)
            return
        took = time.monotonic() - began
        if level == POPULAR:  # no batching: the time is proportional to the size
            for size in self.config.batch_sizes:
                self._pace.note(level, size, took * size / len(waiting))
        else:
            self._pace.note(level, len(waiting), took)
            self.metrics.batch(level, len(waiting), took)

    def _answer(
        self, request: SuggestRequest, result: SuggestResult, level: str, version, **details
    ) -> Answer:
        answer = _cut(request, result, level, version, **details)
        self.metrics.answered(level, answer.waited, answer.took, cached=answer.cached)
        return answer

    # ------------------------------------------------------------------ the refreshing thread

    def _refresh(self) -> None:
        """Counts new events of all servers, also while shapes are compiled."""
        failed = ""
        while not self._closed.wait(self.config.watch_seconds):
            version = self._current
            try:
                if version is not None:
                    version.refresh()
                failed = ""
            except Exception as error:  # for example of a version that is being replaced
                message = f"serve: new events are not counted: {type(error).__name__}"
                if version is self._current and message != failed:
                    self._say(message)
                    failed = message

    # ------------------------------------------------------------------ the watching thread

    def _watch(self) -> None:
        """Loads the version in use, and later each version that replaces it."""
        failed, since = "", 0.0
        while True:
            path = ""
            try:
                path = self._in_use()
                loaded = self._current and self._current.path == path
                due = path != failed or time.monotonic() - since > _RETRY_SECONDS
                if not loaded and due:
                    self._swap(path)
                    failed = ""
                if self._current is not None and self._current.read_terms():
                    self._say("serve: blocked terms read again")
            except Exception as error:
                failed, since = path, time.monotonic()
                if self._current is None:
                    self.failure = error
                    self._ready.set()
                    return
                self.metrics.swap_failed()
                message = plain(error) if isinstance(error, UserError) else repr(error)
                self._say(f"serve: {path or 'the version in use'}: {message}")
            if self._closed.wait(self.config.watch_seconds):
                return

    def _swap(self, path: str) -> None:
        """Loads and compiles the version at `path`, then puts it in use."""
        began = time.monotonic()
        with heap.long_lived():
            version = self._load(path)
        if not version.levels(self.config):
            raise UserError(
                f"EngineConfig.levels = {list(self.config.levels)}: this model has the levels "
                f"{', '.join(version.LEVELS)}; name some of these."
            )
        steps = version.warmup(self.config, self._pace, self._closed.is_set)
        if self._current is None:
            next(steps, None)  # the first version is in use as soon as it can answer
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
            self._closed.wait(self.config.watch_seconds)  # its last batches end
            gc.unfreeze()
            gc.collect()  # the only collection that requests wait for
        gc.freeze()


def _run_at_low_priority(run: Callable[[], None]) -> None:
    """Runs at a lower priority than the HTTP thread; threads that XLA starts inherit it. With few
    cores, refusals and cached lists then do not wait for the model.
    """
    if sys.platform == "linux":  # elsewhere a priority applies to the whole process
        thread = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*thread, os.getpriority(*thread) + _NICE)
    run()


def _cut(
    request: SuggestRequest, result: SuggestResult, level: str, version: ModelVersion, **details
) -> Answer:
    """The answer with at most `request.k` suggestions."""
    k = request.k
    if len(result.texts) > k:
        texts, scores, written = result.texts[:k], result.scores[:k], result.written[:k]
        result = replace(result, texts=texts, scores=scores, written=written)
    return Answer(result, level, version.name, **details)
