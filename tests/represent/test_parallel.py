"""Related queries by several processes: one process's answers, clear ends."""

import functools
import os
import signal
import time

import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.represent.formula import RelatedConfig
from onesug_jax.represent.parallel import ParallelRelated, cores, related_by
from onesug_jax.represent.related import RelatedQueries

COUNTS = {f"{word} {i}": 1 + (7 * i) % 11 for word in ("rug", "run") for i in range(60)}


def opened(k: int) -> RelatedQueries:
    completions = CompletionIndex.from_counts(list(COUNTS), list(COUNTS.values()))
    return RelatedQueries(completions, k, RelatedConfig())


def failing() -> RelatedQueries:
    raise UserError("index: built by another encoder")


def test_answers_are_those_of_one_process_in_its_order():
    own = opened(5)
    prefixes = [text[: 1 + i % len(text)] for i, text in enumerate(COUNTS)] * 3
    histories = [[]] * len(prefixes)
    queries = list(COUNTS) * 3
    assert len(prefixes) > 200  # several pieces
    with related_by(own, functools.partial(opened, 5), 2) as parallel:
        assert isinstance(parallel, ParallelRelated)
        for without in (None, queries):
            expected = own.related(prefixes, histories, without)
            assert parallel.related(prefixes, histories, without) == expected
        assert parallel.related([], []) == []
        assert parallel.pools(["ru"], 3) == own.pools(["ru"], 3)
        assert parallel.vectors(["ru"]) is None
        assert parallel.alone(["ru"], ["rug 1"]) == own.alone(["ru"], ["rug 1"])
        assert parallel.worth([["rug 1"]]) == own.worth([["rug 1"]])


def test_one_worker_is_no_process():
    own = opened(2)
    for workers in (0, 1):
        with related_by(own, failing, workers) as found:
            assert found is own
    assert cores() >= 1


def test_a_process_that_is_ended_is_told_of():
    parallel = ParallelRelated(opened(2), functools.partial(opened, 2), 2)
    for process in list(parallel._pool._processes):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(UserError, match="examples.workers=1"):
        for _ in range(50):
            parallel.related(["ru"] * 500, [[]] * 500)
            time.sleep(0.1)
    parallel.close()


def test_one_that_cannot_open_what_it_needs_is_told_of():
    with pytest.raises(UserError, match=r"examples.workers=1"):
        ParallelRelated(opened(2), failing, 2)


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with related_by(opened(2), functools.partial(opened, 2), 2):
        assert os.environ["JAX_PLATFORMS"] == "tpu" and "OMP_NUM_THREADS" not in os.environ
