"""Tasks of an engine: functions of this package, run beside one another on the same files.

What one table expression cannot say (a walk through a block of time) is such a task. It reads and
writes files, so on a cluster the paths must be the same on all machines, and this package must be
installed there.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from onesug_jax.logs.engines import LogEngineConfig, spark_session


@contextlib.contextmanager
def open_workers(
    config: LogEngineConfig, scratch: str
) -> Iterator[tuple[int, Callable[[Callable[[Any], Any], Any], Future]]]:
    """How many tasks run at a time, and `submit(function, argument)`; tasks that have not begun are
    left out where an error ends the block.

    `function` and `argument` are pickled; the function stands at the top of a module.

    Args:
      config: which engine.
      scratch: an existing folder for Spark's temporary files.
    """
    if config.name == "spark":
        session, own = spark_session(config, scratch)
        spark = session.sparkContext
        count = config.workers or spark.defaultParallelism
        pool: Executor = ThreadPoolExecutor(count)

        def submit(function: Callable[[Any], Any], argument: Any) -> Future:
            task = spark.parallelize([argument], 1).map(function)
            return pool.submit(lambda: task.collect()[0])
    else:
        own, count = False, config.workers or len(os.sched_getaffinity(0))
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))

        def submit(function: Callable[[Any], Any], argument: Any) -> Future:
            return pool.submit(function, argument)

    try:
        yield count, submit
        pool.shutdown()
    finally:
        pool.shutdown(cancel_futures=True)
        if own:
            session.stop()


def results(
    config: LogEngineConfig,
    scratch: str,
    function: Callable[[Any], Any],
    arguments: Iterable[Any],
) -> Iterator[Any]:
    """`function(argument)` of each argument, in their order, made by workers. An argument is taken
    when a worker is free for it, or one ahead. Parameters as of `open_workers`.
    """
    waiting: collections.deque[Future] = collections.deque()
    with open_workers(config, scratch) as (count, submit):
        for argument in arguments:
            waiting.append(submit(function, argument))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
