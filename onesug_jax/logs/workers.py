"""Parallel tasks of an engine: functions of this package that read and write shared files.

They do the work that a table expression cannot, such as a walk through a block of time. On a
cluster, the paths must be the same on all machines, and this package must be installed there.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.logs.spark import spark_session


@contextlib.contextmanager
def open_workers(
    config: LogEngineConfig, scratch: str
) -> Iterator[tuple[int, Callable[[Callable[[Any], Any], Any], Future]]]:
    """The number of tasks that run at a time, and `submit(function, argument)`. An error in the
    block cancels the tasks that have not begun.

    Both are pickled, so `function` must be defined at the top level of a module.

    Args:
      config: which engine.
      scratch: an existing folder for Spark's temporary files.

    Raises:
      UserError: the system killed a process of this machine, usually because memory ran out.
    """
    if config.name == "spark":
        session, own = spark_session(config, scratch)
        spark = session.sparkContext
        count = config.workers or spark.defaultParallelism
        pool: Executor = ThreadPoolExecutor(count)

        def submit(function: Callable[[Any], Any], argument: Any) -> Future:
            task = spark.parallelize([argument], 1).map(functools.partial(_attempt, function))
            return pool.submit(lambda: _outcome(*task.collect()[0]))
    else:
        own, count = False, config.workers or len(os.sched_getaffinity(0))
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_end_with_parent)

        def submit(function: Callable[[Any], Any], argument: Any) -> Future:
            return pool.submit(function, argument)

    try:
        yield count, submit
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            f"one of {count} worker processes was killed, probably because memory ran out. Use "
            "fewer with --gin.LogEngineConfig.workers=N and run the same command again; finished "
            "parts stay."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        if own:
            session.stop()


def _attempt(function: Callable[[Any], Any], argument: Any) -> tuple[Any, UserError | None]:
    """The result, or the UserError: Spark would bury its message in a traceback of Java."""
    try:
        return function(argument), None
    except UserError as error:
        return None, error


def _outcome(result: Any, error: UserError | None) -> Any:
    if error is not None:
        raise error
    return result


def _end_with_parent() -> None:
    """Ends this worker when the process that started it ends, even if that one was killed; its
    pool would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def results(
    config: LogEngineConfig, scratch: str, function: Callable[[Any], Any], arguments: Iterable[Any]
) -> Iterator[Any]:
    """`function(argument)` of each argument, in their order, computed by workers. At most one
    argument is read ahead of the workers. Parameters as of `open_workers`.
    """
    pending: collections.deque[Future] = collections.deque()
    with open_workers(config, scratch) as (count, submit):
        for argument in arguments:
            pending.append(submit(function, argument))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
