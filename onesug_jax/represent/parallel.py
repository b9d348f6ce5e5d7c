"""Related queries of many rows, found by several processes.

A training row's related queries hang on nothing but the row and what the index holds, so blocks of
rows are cut into pieces and given to processes that each opened the same WORK_DIR for themselves.
The answers are those of one process, in its order. Everything else is asked of the one that is
here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.represent.related import RelatedQueries

_PIECE = 64  # rows
# What each process has a core for, and no more: accelerators are the parent's.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# Arguments of `related`, of a few rows.
Piece = tuple[
    Sequence[str],
    Sequence[Sequence[str]],
    Sequence[str | None] | None,
    Sequence[Sequence[str]] | None,
    Sequence[Sequence[float]] | None,
]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


class ParallelRelated:
    """`RelatedQueries` whose `related` is worked out by `workers` processes.

    Args:
      own: answers everything else.
      open_: makes another such, in a process that was started anew; it must pickle.
      workers: how many processes, at least 2.

    Raises:
      UserError: from any method, where a process ended before its work did.
    """

    def __init__(self, own: RelatedQueries, open_: Callable[[], RelatedQueries], workers: int):
        self._own, self.history = own, own.history
        # A copy of this process would hold locks of TensorFlow's and JAX's threads for ever.
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _open, (open_,)
        )
        with _environment(_ENVIRONMENT):  # a process starts with each task that finds none idle
            started = [self._pool.submit(_nothing) for _ in range(workers)]
        self._results(started)

    def related(
        self,
        prefixes: Sequence[str],
        histories: Sequence[Sequence[str]],
        without: Sequence[str | None] | None = None,
        profiles: Sequence[Sequence[str]] | None = None,
        minutes: Sequence[Sequence[float]] | None = None,
    ) -> list[list[str]]:
        """As `RelatedQueries.related`."""
        cuts = [slice(at, at + _PIECE) for at in range(0, len(prefixes), _PIECE)]
        pieces: list[Piece] = [
            (
                prefixes[cut],
                histories[cut],
                None if without is None else without[cut],
                None if profiles is None else profiles[cut],
                None if minutes is None else minutes[cut],
            )
            for cut in cuts
        ]
        found = self._results([self._pool.submit(_related, piece) for piece in pieces])
        return [row for piece in found for row in piece]

    def worth(
        self, related: Sequence[Sequence[str]], visitors: Sequence[str] | None = None
    ) -> list[list[int]]:
        """As `RelatedQueries.worth`."""
        return self._own.worth(related, visitors)

    def vectors(
        self, prefixes: Sequence[str], without: Sequence[str | None] | None = None
    ) -> np.ndarray | None:
        """As `RelatedQueries.vectors`."""
        return self._own.vectors(prefixes, without)

    def alone(self, prefixes: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """As `RelatedQueries.alone`."""
        return self._own.alone(prefixes, queries)

    def pools(self, prefixes: Sequence[str], k: int) -> list[tuple[str, ...]]:
        """As `RelatedQueries.pools`."""
        return self._own.pools(prefixes, k)

    def close(self) -> None:
        """Ends the processes; what was not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    @staticmethod
    def _results(futures: list) -> list:
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as e:
            raise UserError(
                "a process that finds related queries was ended, as happens where memory is short; "
                "ask for fewer: --gin.examples.workers=1"
            ) from e


@contextlib.contextmanager
def related_by(
    own: RelatedQueries, open_: Callable[[], RelatedQueries], workers: int
) -> Iterator[RelatedQueries | ParallelRelated]:
    """`own` itself for one worker or none, else `ParallelRelated`, closed at the end."""
    if workers < 2:
        yield own
        return
    parallel = ParallelRelated(own, open_, workers)
    try:
        yield parallel
    finally:
        parallel.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Some environment variables set, and as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_here: RelatedQueries  # in each of the processes


def _open(open_: Callable[[], RelatedQueries]) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = open_()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()  # one that is killed tells nobody
    assert parent is not None
    parent.join()
    os._exit(1)


def _nothing() -> None:
    """Done once the process has opened what it needs."""


def _related(piece: Piece) -> list[list[str]]:
    return _here.related(*piece)
