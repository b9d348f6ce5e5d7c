"""The engine: batches, failures, the cache, and the exchange of versions."""

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
from tests.serve.asking import answer, blocked_engine, request, until

# ------------------------------------------------------------------ batches


def test_requests_that_arrive_together_become_one_batch(started, fake_version):
    engine, version, first = blocked_engine(started, fake_version, max_batch=4, levels=("beam",))
    others = [engine.submit(request(f"p{i}")) for i in range(6)]
    engine._pace.note("beam", 1, 60.0)  # so that batches pay, however busy the machine is
    version.gate.set()
    for i, future in enumerate(others):
        assert future.result(30).result.texts[0] == f"p{i}0", "each its own list"
    assert first.result(30).batch == 1
    assert [len(requests) for _, requests in version.batches] == [1, 4, 2]


def test_the_first_of_a_batch_waits_no_longer_than_it_must(started, fake_version):
    engine = started(fake_version(), max_batch=2, max_wait_ms=60_000.0, deadline_ms=120_000.0)
    lonely = engine.submit(request("a"))
    time.sleep(0.1)
    assert not lonely.done()
    engine.submit(request("b"))
    assert lonely.result(30).batch == 2, "a full batch starts at once"
    quick = started(fake_version(), max_batch=8, max_wait_ms=1.0)
    assert answer(quick, request("a")).batch == 1


@pytest.mark.long
def test_a_real_model_answers_through_the_engine(started, tiny):
    long = {"deadline_ms": 60_000.0, "wait_ms": 60_000.0}
    engine = started(tiny(), lengths=(1.0,), levels=("beam",), **long)
    with ThreadPoolExecutor(8) as pool:
        prefixes = ["la", "m", "tent", "拖", "lan", ""]
        answers = list(pool.map(lambda p: answer(engine, request(p)), prefixes))
    for prefix, found in zip(prefixes, answers, strict=True):
        assert found.level == "beam" and found.version == "0000"
        assert found.result.texts and all(text.startswith(prefix) for text in found.result.texts)


def test_a_finished_list_does_not_wait_for_its_batch(started, fake_version):
    class InTurn(fake_version):
        def answers(self, requests, level):
            last = len(requests) - 1
            yield last, self._list(requests[last])
            yield from enumerate(self.results(requests[:last], level))

    version = InTurn()
    engine = started(version, max_batch=2, max_wait_ms=10_000.0, levels=("beam", "popular"))
    version.gate.clear()
    slow, quick = engine.submit(request("a")), engine.submit(request("b"))
    assert quick.result(30).result.texts[0] == "b0" and not slow.done()
    version.fails = ValueError("later")
    version.gate.set()
    assert slow.result(30).level == "popular" and quick.result().level == "beam"


def test_a_batch_that_fails_fails_alone(started, fake_version):
    version = fake_version()
    engine = started(version, levels=("beam",))
    version.fails = RuntimeError("q7zwx")
    with pytest.raises(RuntimeError, match="beam failed: RuntimeError") as failed:
        answer(engine, request("a"))
    assert "q7zwx" not in "".join(traceback.format_exception(failed.value)), "servers log these"
    assert "RuntimeError" in engine.lines[-1] and "q7zwx" not in engine.lines[-1]
    version.fails = None
    assert answer(engine, request("a")).result.texts


def test_a_failing_model_is_replaced_by_the_most_popular(started, fake_version):
    version = fake_version()
    engine = started(version)
    version.fails = RuntimeError("broken")
    found = answer(engine, request("a", ()))
    assert found.level == "popular" and found.result.texts[0] == "a popular 0"
    version.fails = None
    found = answer(engine, request("a", ()))
    assert found.level == "beam" and not found.cached


def test_the_engine_survives_a_failure_of_all_levels(started, fake_version, monkeypatch):
    version = fake_version()
    engine = started(version)
    version.fails = RuntimeError("broken")
    with monkeypatch.context() as broken:
        broken.setattr(version, "popular", lambda prefix: 1 / 0)
        with pytest.raises(RuntimeError, match="beam failed"):
            answer(engine, request("a", ()))
    version.fails = None
    assert answer(engine, request("a", ())).level == "beam"


def test_a_list_for_comparison_is_no_answer(started, fake_version):
    engine = started(fake_version())
    before = engine.metrics.text(0)
    assert engine.popular(request("a", k=3)).result.texts[0] == "a popular 0"
    assert engine.metrics.text(0) == before


# ------------------------------------------------------------------ the cache


def test_finished_lists_are_cached_for_requests_without_a_history(started, fake_version):
    version = fake_version()
    engine = started(version)
    first, again = (answer(engine, request("a", ())) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.result == first.result and len(version.batches) == 1
    assert not answer(engine, request("a", ("tent",))).cached, "a history makes another list"
    assert not answer(engine, request("a", (), profile=("f", ""))).cached
    assert len(answer(engine, request("a", (), k=3)).result.texts) == 3
    assert b'cached_lists_total{found="true"} 2.0' in engine.metrics.text(0)


def test_lists_of_lower_levels_are_not_cached(started, three_levels):
    engine = started(three_levels(), levels=("full", "beam"))
    for size in (1, 8):
        engine._pace.note("full", size, 5.0)
    assert answer(engine, request("a", (), within=1.0)).level == "beam"
    assert not answer(engine, request("a", (), within=60.0)).cached


def test_changed_terms_are_read_and_errors_in_them_printed(started, fake_version):
    version = fake_version()
    engine = started(version)
    version.terms.append(True)
    until(lambda: "serve: blocked terms read again" in engine.lines)
    version.terms.append(UserError("blocked.txt: expected UTF-8"))
    until(lambda: any("expected UTF-8" in line for line in engine.lines))
    assert answer(engine, request("a")).result.texts


def test_a_list_begun_under_the_old_terms_is_not_cached_for_the_new(started, fake_version):
    version = fake_version()
    engine = started(version)
    version.gate.clear()
    under_way = engine.submit(request("b", ()))
    assert version.began.wait(30)
    version.cache = Cache(100)  # as `ModelVersion.read_terms` does
    version.gate.set()
    under_way.result(30)
    assert len(version.cache) == 0


# ------------------------------------------------------------------ versions


def exchanged(engine, version):
    engine.versions[version.path] = version
    engine.in_use[0] = version.path


@pytest.mark.long
def test_another_version_takes_over_without_losing_a_request(started, fake_version):
    """Versions are exchanged forth and back under requests, which are all answered."""
    engine = started(fake_version("0000"), max_batch=4, levels=("beam",), deadline_ms=60_000.0)
    answers, stop = [], threading.Event()

    def ask_on():
        count = 0
        while not stop.is_set():
            count += 1
            answers.append(answer(engine, request(f"p{count}")).version)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        for version in ("0001", "0000", "0002"):
            exchanged(engine, fake_version(version))
            until(lambda wanted=version: engine.version.name == wanted)
            time.sleep(0.05)
        stop.set()
        for future in asking:
            future.result(30)
    assert set(answers) == {"0000", "0001", "0002"}
    assert answer(engine, request("last")).version == "0002"
    assert not engine.waiting


@pytest.mark.long
def test_cached_lists_go_with_their_version(started, fake_version):
    engine = started(fake_version("0000"), deadline_ms=60_000.0)
    answer(engine, request("a", ()))
    exchanged(engine, fake_version("0001"))
    until(lambda: engine.version.name == "0001")
    found = answer(engine, request("a", ()))
    assert not found.cached and found.version == "0001"


@pytest.mark.long
def test_a_batch_that_has_begun_ends_with_its_own_version(started, fake_version):
    engine, version, first = blocked_engine(started, fake_version)
    exchanged(engine, fake_version("0001"))
    until(lambda: engine.version.name == "0001")
    version.gate.set()
    assert first.result(30).version == "0000"


@pytest.mark.long
def test_a_version_that_cannot_be_loaded_changes_nothing(started, fake_version):
    engine = started(fake_version("0000"))
    engine.in_use[0] = "/work/0001"  # missing: loading it raises KeyError
    until(lambda: engine.lines and "/work/0001: KeyError" in engine.lines[-1])
    assert answer(engine, request("a")).version == "0000"
    time.sleep(0.1)
    assert len([line for line in engine.lines if "KeyError" in line]) == 1, "printed once"
    exchanged(engine, fake_version("0002"))
    until(lambda: engine.version.name == "0002")


def test_a_first_version_that_cannot_be_loaded_is_an_error():
    def load(path):
        raise UserError("no model here")

    engine = Engine(lambda: "/work", load, EngineConfig(), say=lambda line: None)
    with pytest.raises(NotReady):
        engine.submit(request("a"))
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


def test_more_devices_take_larger_batches():
    config = EngineConfig(max_batch=2).over(4)
    assert config.batch_sizes == (1, 8), "four devices take two rows each"
