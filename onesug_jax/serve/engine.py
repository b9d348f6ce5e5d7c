"""The engine: requests that arrive together become one batch, and every one of them gets an answer.

    submit -> kept list?  -> Answer at once
           -> queue full? -> Full at once
           -> queue -> batch (at most `max_batch`, waiting at most `max_wait_ms`)
                       past its deadline: dropped before the model sees it
                       rung of the ladder by backlog and deadline -> lists -> Answer

One thread runs the model. Another loads the version of WORK_DIR that is in use, compiles its shapes
ahead of time, and watches: when an update publishes the next version (or a rollback the one before)
it is loaded and compiled beside the old one, and takes its place between two batches. No request
waits for it, and none is lost. This file knows no HTTP.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from onesug_jax.errors import UserError, plain
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.ladder import POPULAR, RUNGS, Pace, choose, in_time
from onesug_jax.serve.live import poll_quietly
from onesug_jax.serve.metrics import Metrics
from onesug_jax.serve.served import Ask, Listed, Served

_RETRY_SECONDS = 30.0  # between attempts at a version that could not be loaded


@dataclass(frozen=True)
class Answer:
    """A list, and how it came about. Times in seconds; `batch` is the size of its batch."""

    listed: Listed
    rung: str
    version: str
    cached: bool = False
    waited: float = 0.0
    took: float = 0.0
    batch: int = 0


class Full(Exception):
    """The queue has no place, or no answer would come in time; `after` says when to ask again."""

    def __init__(self, after: float):
        super().__init__("too many requests are waiting")
        self.after = after


class NotReady(Exception):
    """The model is still being loaded and compiled."""


class Late(Exception):
    """The request's deadline passed before the model saw it."""


@dataclass
class _Waiting:
    ask: Ask
    future: Future
    arrived: float
    deadline: float


class Engine:
    """Answers requests with the version of the model that is in use.

    Args:
      in_use: where the version in use lies.
      load: opens the version that lies there.
      config: batching, caches, ladder.
      metrics: what is counted.
      say: where one-line messages go.
    """

    def __init__(
        self,
        in_use: Callable[[], str],
        load: Callable[[str], Served],
        config: EngineConfig,
        *,
        metrics: Metrics | None = None,
        say: Callable[[str], None] = print,
    ):
        self.config, self.metrics = config, metrics or Metrics()
        self._in_use, self._load, self._say = in_use, load, say
        self._pace = Pace(config.batch_sizes)
        self._served: Served | None = None
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrived = threading.Condition()
        self._closing = False  # nothing more is accepted
        self._closed = threading.Event()
        self._ready = threading.Event()
        self.warming = True  # shapes are still being compiled, for the first version
        self.failure: BaseException | None = None  # why the first version could not be loaded
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("watch", self._watch), ("model", self._run))
        ]

    # ------------------------------------------------------------------ from outside

    def start(self) -> Engine:
        """Begins to load; returns at once."""
        for thread in self._threads:
            thread.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Waits until requests are answered; raises what kept the first version from loading."""
        self._ready.wait(timeout)
        if self.failure is not None:
            raise self.failure
        return self.ready

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._served is not None and not self._closing

    @property
    def served(self) -> Served:
        """The version in use.

        Raises:
          NotReady: none is loaded yet.
        """
        if self._served is None:
            raise NotReady("the model is being loaded and compiled")
        return self._served

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def submit(self, ask: Ask) -> Future:
        """Asks for a list; the Future holds an Answer, or fails with Late.

        Raises:
          Full: there is no place in the queue, or no answer would come in time.
          NotReady: no version is loaded yet, or the engine is closing.
        """
        served = self.served
        now = time.monotonic()
        future: Future = Future()
        listed = served.kept.get(ask.key) if ask.key else None
        self.metrics.lists(hit=listed is not None)
        if listed is not None:
            future.set_result(self._answer(ask, listed, self.config.ladder[0], served, cached=True))
            return future
        within = self.config.deadline_ms / 1000 if ask.within is None else ask.within
        last = self.config.ladder[-1]
        with self._arrived:
            if self._closing:
                raise NotReady("the server is closing")
            wait = self._pace.to_clear(last, len(self._queue) + 1) if last != POPULAR else 0.0
            if len(self._queue) >= self.config.queue:
                self._leave_out_the_gone()
            if len(self._queue) >= self.config.queue or len(self._queue) and wait > within:
                self.metrics.refused()
                raise Full(max(wait, self.config.target_ms / 1000))
            self._queue.append(_Waiting(ask, future, now, now + within))
            self._arrived.notify()
        return future

    def _leave_out_the_gone(self) -> None:
        """Gives the places of clients that have gone to others; to be called with the lock."""
        stay = [one for one in self._queue if not one.future.cancelled()]
        for _ in range(len(self._queue) - len(stay)):
            self.metrics.abandoned()
        self._queue = collections.deque(stay)

    def popular(self, ask: Ask) -> Answer:
        """The last rung, whatever the ladder says: for comparison, and not counted as an answer.
        NotReady as `served`.
        """
        served = self.served
        return _cut(ask, served.popular(ask.prefix), POPULAR, served)

    def close(self) -> None:
        """Accepts nothing more, answers what was accepted, and ends."""
        with self._arrived:
            self._closing = True
            self._arrived.notify_all()
        self._closed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # ------------------------------------------------------------------ the model's thread

    def _run(self) -> None:
        while groups := self._take():
            for rung, group in groups:
                self._serve(rung, group)

    def _take(self) -> list[tuple[str, list[_Waiting]]] | None:
        """The next batch, by rung, cheapest rung first; None: closed, and nothing waits."""
        config = self.config
        with self._arrived:
            while not self._queue:
                if self._closing:
                    return None
                self._arrived.wait()
            until = self._queue[0].arrived
            if self._pace.together(config.ladder[0], config.max_batch) > 1:
                until += config.max_wait_ms / 1000
            while len(self._queue) < config.max_batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._arrived.wait(left)
            queue = self._queue
            now = time.monotonic()
            target = config.target_ms / 1000
            waited = now - queue[0].arrived
            ladder = self._pace.quicker(config.ladder)
            rung = choose(ladder, self._pace, len(queue), config.max_batch, waited, target)
            groups: dict[str, list[_Waiting]] = collections.defaultdict(list)
            if rung == POPULAR and config.modes:
                # Those whom the model can still answer in time are left to it.
                rung = ladder[-2]
                each = self._pace.each(rung, len(queue))
                fits = max(1, int(target / each) if each else config.max_batch)
                while len(queue) > fits:
                    groups[POPULAR].append(queue.popleft())
            size = self._pace.together(rung, len(queue)) if rung != POPULAR else len(queue)
            for _ in range(size):
                one = queue.popleft()
                lower = in_time(ladder, self._pace, rung, one.deadline - now, size)
                groups[lower].append(one)
        order = sorted(groups, key=RUNGS.index, reverse=True)
        return [(rung, groups[rung]) for rung in order]

    def _serve(self, rung: str, group: Sequence[_Waiting]) -> None:
        """Answers a group at one rung, but for those who are late or gone."""
        began = time.monotonic()
        asked = []
        for one in group:
            if not one.future.set_running_or_notify_cancel():
                self.metrics.abandoned()
            elif one.deadline < began:
                self.metrics.late()
                one.future.set_exception(Late("the deadline passed before the model was asked"))
            else:
                asked.append(one)
        if not asked:
            return
        served = self.served
        kept = served.kept  # of the terms in force now: an exchange of them begins another
        found: list[Listed] | None = None
        try:
            found = served.lists([one.ask for one in asked], rung)
        except Exception as error:
            # Its message may hold what somebody typed; where it happened does not.
            place = "".join(traceback.format_tb(error.__traceback__))
            self._say(f"serve: {len(asked)} at {rung!r} failed: {type(error).__name__}\n{place}")
            self.metrics.failed()
            if POPULAR in self.config.ladder and rung != POPULAR:
                with contextlib.suppress(Exception):  # told below, as the first
                    found = served.lists([one.ask for one in asked], POPULAR)
            if found is None:
                told = RuntimeError(f"{rung} failed: {type(error).__name__}")  # no text of theirs
                for one in asked:
                    one.future.set_exception(told)
                return
            rung = POPULAR
        took = time.monotonic() - began
        if rung != POPULAR:
            self._pace.note(rung, len(asked), took)
            self.metrics.batch(rung, len(asked), took)
        for one, listed in zip(asked, found, strict=True):
            if one.ask.key and rung == self.config.ladder[0]:
                kept.put(one.ask.key, listed)
            waited = began - one.arrived
            one.future.set_result(
                self._answer(
                    one.ask, listed, rung, served, waited=waited, took=took, batch=len(asked)
                )
            )

    def _answer(self, ask: Ask, listed: Listed, rung: str, served: Served, **how) -> Answer:
        answer = _cut(ask, listed, rung, served, **how)
        self.metrics.answered(rung, answer.waited, answer.took, cached=answer.cached)
        return answer

    # ------------------------------------------------------------------ the watching thread

    def _watch(self) -> None:
        """Loads the version in use, and again whenever another one is."""
        failed, since = "", 0.0
        while True:
            wanted = ""
            try:
                wanted = self._in_use()
                there = self._served and self._served.path == wanted
                again = wanted != failed or time.monotonic() - since > _RETRY_SECONDS
                if not there and again:
                    self._swap(wanted)
                    failed = ""
                if self._served is not None:
                    if self._served.read_terms():
                        self._say("serve: blocked terms read again")
                    if self._served.live is not None:
                        poll_quietly(self._served.live)  # what this and other servers were sent
            except Exception as error:
                failed, since = wanted, time.monotonic()
                if self._served is None:
                    self.failure = error
                    self._ready.set()
                    return
                self.metrics.swap_failed()
                told = plain(error) if isinstance(error, UserError) else repr(error)
                self._say(f"serve: {wanted or 'the version in use'}: {told}")
            if self._closed.wait(self.config.watch_seconds):
                return

    def _swap(self, path: str) -> None:
        """Loads and compiles the version at `path`, then puts it in use."""
        began = time.monotonic()
        served = self._load(path)
        shapes = self.config.shapes(served.suggester.featurizer.spec.input_length)
        steps = served.prepare(self.config.modes, shapes, self._pace, self._closed.is_set)
        if self._served is None:
            next(steps, None)  # nothing else answers: in use as soon as it can
        else:
            collections.deque(steps, maxlen=0)
        if self._closed.is_set():
            return
        before, self._served = self._served, served
        if before is not None and before.live is not None:
            before.live.close()
        took = time.monotonic() - began
        self.metrics.version(served.version, took)
        self._say(f"serve: version {served.version} is in use, ready after {took:.1f} s")
        self._ready.set()
        collections.deque(steps, maxlen=0)
        self.warming = False


def _cut(ask: Ask, listed: Listed, rung: str, served: Served, **how) -> Answer:
    """The answer with as many suggestions as were asked for."""
    k = ask.k
    listed = replace(listed, texts=listed.texts[:k], scores=listed.scores[:k])
    return Answer(listed, rung, served.version, **how)
