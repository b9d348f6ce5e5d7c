"""The engine: batches, queue, deadlines, the levels, the cache, and the exchange of versions."""

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from onesug_jax.errors import UserError
from onesug_jax.serve.cache import Cache
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.engine import Engine
from onesug_jax.serve.requests import NotReady
from tests.serve.asking import answer, asked, blocked_engine, until

# ------------------------------------------------------------------ batches


def test_requests_that_arrive_together_become_one_batch(started, pretended):
    engine, version, first = blocked_engine(started, pretended, max_batch=4, levels=("beam",))
    others = [engine.submit(asked(f"p{i}")) for i in range(6)]
    version.gate.set()
    for i, future in enumerate(others):
        assert future.result(30).result.texts[0] == f"p{i}0", "each its own list"
    assert first.result(30).batch == 1
    assert [len(requests) for _, requests in version.batches] == [1, 4, 2]


def test_the_first_of_a_batch_waits_no_longer_than_it_must(started, pretended):
    engine = started(pretended(), max_batch=2, max_wait_ms=60_000.0, deadline_ms=120_000.0)
    lonely = engine.submit(asked("a"))
    time.sleep(0.1)
    assert not lonely.done()
    engine.submit(asked("b"))
    assert lonely.result(30).batch == 2, "a full batch goes at once"
    quick = started(pretended(), max_batch=8, max_wait_ms=1.0)
    assert answer(quick, asked("a")).batch == 1


@pytest.mark.long
def test_a_real_model_answers_through_the_engine(started, tiny):
    long = {"deadline_ms": 60_000.0, "wait_ms": 60_000.0}
    engine = started(tiny(), lengths=(1.0,), levels=("beam",), **long)
    with ThreadPoolExecutor(8) as pool:
        prefixes = ["la", "m", "tent", "拖", "lan", ""]
        answers = list(pool.map(lambda p: answer(engine, asked(p)), prefixes))
    for prefix, found in zip(prefixes, answers, strict=True):
        assert found.level == "beam" and found.version == "0000"
        assert found.result.texts and all(text.startswith(prefix) for text in found.result.texts)


def test_a_list_that_is_finished_waits_for_no_other_of_its_batch(started, pretended):
    class InTurn(pretended):
        def answers(self, requests, level):
            last = len(requests) - 1
            yield last, self._list(requests[last])
            yield from enumerate(self.results(requests[:last], level))

    version = InTurn()
    engine = started(version, max_batch=2, max_wait_ms=10_000.0, levels=("beam", "popular"))
    version.gate.clear()
    slow, quick = engine.submit(asked("a")), engine.submit(asked("b"))
    assert quick.result(30).result.texts[0] == "b0" and not slow.done()
    version.fails = ValueError("later")
    version.gate.set()
    assert slow.result(30).level == "popular" and quick.result().level == "beam"


def test_a_batch_that_fails_fails_alone(started, pretended):
    version = pretended()
    engine = started(version, levels=("beam",))
    version.fails = RuntimeError("q7zwx")
    with pytest.raises(RuntimeError, match="beam failed: RuntimeError") as failed:
        answer(engine, asked("a"))
    assert "q7zwx" not in "".join(traceback.format_exception(failed.value)), "servers log these"
    assert "RuntimeError" in engine.said[-1] and "q7zwx" not in engine.said[-1]
    version.fails = None
    assert answer(engine, asked("a")).result.texts


def test_where_the_model_fails_the_most_popular_answer(started, pretended):
    version = pretended()
    engine = started(version)
    version.fails = RuntimeError("broken")
    found = answer(engine, asked("a", ()))
    assert found.level == "popular" and found.result.texts[0] == "a popular 0"
    version.fails = None
    found = answer(engine, asked("a", ()))
    assert found.level == "beam" and not found.cached


def test_where_even_the_most_popular_fail_the_engine_lives_on(started, pretended, monkeypatch):
    version = pretended()
    engine = started(version)
    version.fails = RuntimeError("broken")
    with monkeypatch.context() as broken:
        broken.setattr(version, "popular", lambda prefix: 1 / 0)
        with pytest.raises(RuntimeError, match="beam failed"):
            answer(engine, asked("a", ()))
    version.fails = None
    assert answer(engine, asked("a", ())).level == "beam"


def test_a_list_for_comparison_is_no_answer(started, pretended):
    engine = started(pretended())
    before = engine.metrics.text(0)
    assert engine.popular(asked("a", k=3)).result.texts[0] == "a popular 0"
    assert engine.metrics.text(0) == before


# ------------------------------------------------------------------ the cache


def test_finished_lists_are_cached_for_requests_without_a_history(started, pretended):
    version = pretended()
    engine = started(version)
    first, again = (answer(engine, asked("a", ())) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.result == first.result and len(version.batches) == 1
    assert not answer(engine, asked("a", ("tent",))).cached, "a history makes another list"
    assert not answer(engine, asked("a", (), profile=("f", ""))).cached
    assert len(answer(engine, asked("a", (), k=3)).result.texts) == 3
    assert b'cached_lists_total{found="true"} 2.0' in engine.metrics.text(0)


def test_lists_of_lower_levels_are_not_cached(started, three_levels):
    engine = started(three_levels(), levels=("full", "beam"))
    for size in (1, 8):
        engine._pace.note("full", size, 5.0)
    assert answer(engine, asked("a", (), within=1.0)).level == "beam"
    assert not answer(engine, asked("a", (), within=60.0)).cached


def test_changed_terms_are_noticed_and_a_mistake_in_them_is_printed(started, pretended):
    version = pretended()
    engine = started(version)
    version.terms.append(True)
    until(lambda: "serve: blocked terms read again" in engine.said)
    version.terms.append(UserError("blocked.txt: expected UTF-8"))
    until(lambda: any("expected UTF-8" in line for line in engine.said))
    assert answer(engine, asked("a")).result.texts


def test_a_list_begun_under_the_old_terms_is_not_cached_for_the_new(started, pretended):
    version = pretended()
    engine = started(version)
    version.gate.clear()
    under_way = engine.submit(asked("b", ()))
    assert version.began.wait(30)
    version.cache = Cache(100)  # as `ModelVersion.read_terms` leaves it
    version.gate.set()
    under_way.result(30)
    assert len(version.cache) == 0


# ------------------------------------------------------------------ versions


def exchanged(engine, version):
    engine.versions[version.path] = version
    engine.in_use[0] = version.path


@pytest.mark.long
def test_another_version_takes_over_without_losing_a_request(started, pretended):
    """Requests keep coming while versions go forth and back: all are answered, by one or other."""
    engine = started(pretended("0000"), max_batch=4, levels=("beam",), deadline_ms=60_000.0)
    answers, stop = [], threading.Event()

    def ask_on():
        count = 0
        while not stop.is_set():
            count += 1
            answers.append(answer(engine, asked(f"p{count}")).version)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        for version in ("0001", "0000", "0002"):
            exchanged(engine, pretended(version))
            until(lambda wanted=version: engine.version.name == wanted)
            time.sleep(0.05)
        stop.set()
        for future in asking:
            future.result(30)
    assert set(answers) == {"0000", "0001", "0002"}
    assert answer(engine, asked("last")).version == "0002"
    assert not engine.waiting


@pytest.mark.long
def test_cached_lists_go_with_their_version(started, pretended):
    engine = started(pretended("0000"), deadline_ms=60_000.0)
    answer(engine, asked("a", ()))
    exchanged(engine, pretended("0001"))
    until(lambda: engine.version.name == "0001")
    found = answer(engine, asked("a", ()))
    assert not found.cached and found.version == "0001"


@pytest.mark.long
def test_a_batch_that_has_begun_ends_with_its_own_version(started, pretended):
    engine, version, first = blocked_engine(started, pretended)
    exchanged(engine, pretended("0001"))
    until(lambda: engine.version.name == "0001")
    version.gate.set()
    assert first.result(30).version == "0000"


@pytest.mark.long
def test_a_version_that_cannot_be_loaded_changes_nothing(started, pretended):
    engine = started(pretended("0000"))
    engine.in_use[0] = "/work/0001"  # nothing is there: loading it raises KeyError
    until(lambda: engine.said and "/work/0001: KeyError" in engine.said[-1])
    assert answer(engine, asked("a")).version == "0000"
    time.sleep(0.1)
    assert len([line for line in engine.said if "KeyError" in line]) == 1, "printed once"
    exchanged(engine, pretended("0002"))
    until(lambda: engine.version.name == "0002")


def test_a_first_version_that_cannot_be_loaded_is_an_error():
    def load(path):
        raise UserError("no model here")

    engine = Engine(lambda: "/work", load, EngineConfig(), say=lambda line: None)
    with pytest.raises(NotReady):
        engine.submit(asked("a"))
    with pytest.raises(UserError, match="no model here"):
        engine.start().wait_ready(30)
    engine.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"target_ms": 0}, "target_ms"),
        ({"wait_ms": 0}, "wait_ms"),
        ({"levels": ()}, "in this order"),
        ({"levels": ("beam", "full")}, "in this order"),
        ({"levels": ("beam", "best")}, "full, candidates, beam, popular"),
        ({"lengths": (0.5,)}, "the largest 1"),
        ({"candidates": (0, 8)}, "above 0"),
    ],
)
def test_impossible_settings_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        EngineConfig(**wrong)


def test_batch_sizes_that_are_compiled():
    sizes = {most: EngineConfig(max_batch=most).batch_sizes for most in (1, 2, 8, 32, 64)}
    assert sizes == {1: (1,), 2: (1, 2), 8: (1, 8), 32: (1, 4, 32), 64: (1, 8, 64)}


def test_more_devices_take_larger_batches(started, pretended):
    config = EngineConfig(max_batch=2).over(4)
    assert config.batch_sizes == (1, 8), "four devices take two rows each"
    engine, version, first = blocked_engine(started, pretended, max_batch=8, levels=("beam",))
    others = [engine.submit(asked(f"p{i}")) for i in range(8)]
    version.gate.set()
    assert [future.result(30).batch for future in others] == [8] * 8 and first.result(30)
