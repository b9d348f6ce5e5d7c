"""The queue before the model: accepted and refused requests, and their levels."""

import threading
import time

import pytest

from onesug_jax.serve.requests import Full, Late, NotReady
from tests.serve.asking import answer, blocked_engine, request, until


def test_a_full_queue_refuses_at_once_and_answers_the_others(started, fake_version, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.waiting.MOST_WAITING", 3)
    engine, version, first = blocked_engine(started, fake_version, levels=("beam",))
    accepted = [engine.submit(request(f"p{i}")) for i in range(3)]
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(Full) as refused:
            engine.submit(request("more"))
    assert time.monotonic() - began < 1 and refused.value.after > 0
    version.gate.set()
    assert all(future.result(30).result.texts for future in [first, *accepted])
    assert b'unanswered_total{why="refused"} 50.0' in engine.metrics.text(0)


def test_a_request_that_would_be_late_is_refused(started, fake_version):
    engine, version, first = blocked_engine(started, fake_version, levels=("beam",), max_batch=1)
    for _ in range(30):
        engine._pace.note("beam", 1, 2.0)
    second = engine.submit(request("b", within=60.0))
    with pytest.raises(Full):
        engine.submit(request("c", within=3.0))
    version.gate.set()
    assert first.result(30) and second.result(30)


def test_the_longer_the_wait_would_be_the_fewer_are_accepted(started, fake_version):
    engine, version, first = blocked_engine(
        started, fake_version, levels=("beam",), max_batch=1, wait_ms=1000.0
    )
    engine._pace.note("beam", 1, 0.3)
    accepted, refused = [], []
    for number in range(50):
        try:
            accepted.append(engine.submit(request(f"p{number}")))
        except Full as full:
            refused.append(full.after)
    assert len(accepted) == 4 and 1.0 <= min(refused), "four requests wait before the next one"
    assert engine.crowded() > 1.0
    version.gate.set()
    assert all(future.result(30) for future in [first, *accepted])
    until(lambda: not engine.crowded())


def test_requests_that_are_still_being_read_count_as_waiting(started, fake_version):
    engine, version, first = blocked_engine(
        started, fake_version, levels=("beam",), max_batch=1, wait_ms=1000.0
    )
    engine._pace.note("beam", 1, 0.3)
    assert engine.crowded(inside=4) == 0.0, "one in the model, three others"
    assert engine.crowded(inside=5) > 1.0
    version.gate.set()
    first.result(30)


def test_the_batch_being_made_counts_as_a_wait(started, fake_version):
    version = fake_version()
    engine = started(version, max_wait_ms=0.0, levels=("beam",), max_batch=1, wait_ms=1e6)
    for _ in range(20):
        engine._pace.note("beam", 1, 60.0)
    version.gate.clear()
    engine.submit(request("first", within=600.0))
    assert version.began.wait(30)
    engine.submit(request("second", within=600.0))
    with pytest.raises(Full):  # 60 s each for the first, the second and itself
        engine.submit(request("third", within=150.0))
    engine.submit(request("third", within=600.0))
    version.gate.set()


def test_a_request_past_its_deadline_never_reaches_the_model(started, fake_version):
    engine, version, first = blocked_engine(started, fake_version, levels=("beam",))
    late = engine.submit(request("late", within=0.05))
    in_time = engine.submit(request("in time", within=30.0))
    time.sleep(0.1)
    version.gate.set()
    with pytest.raises(Late):
        late.result(30)
    assert in_time.result(30).result.texts
    seen = [ask.prefix for _, requests in version.batches for ask in requests]
    assert seen == ["first", "in time"]


def test_a_cancelled_request_is_not_served(started, fake_version):
    engine, version, _ = blocked_engine(started, fake_version, levels=("beam",))
    gone = engine.submit(request("gone"))
    stays = engine.submit(request("stays"))
    assert gone.cancel()
    version.gate.set()
    assert stays.result(30).result.texts
    assert [ask.prefix for ask in version.batches[-1][1]] == ["stays"]


def test_closing_answers_what_was_accepted_and_accepts_no_more(started, fake_version):
    engine, version, first = blocked_engine(started, fake_version, levels=("beam",))
    accepted = [engine.submit(request(f"p{i}")) for i in range(20)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: not engine.ready)
    with pytest.raises(NotReady):
        engine.submit(request("too late"))
    version.gate.set()
    closing.join(30)
    assert all(future.result(0).result.texts for future in [first, *accepted])


def test_disconnected_clients_free_their_places(started, fake_version, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.waiting.MOST_WAITING", 3)
    engine, version, first = blocked_engine(started, fake_version, levels=("beam",))
    gone = [engine.submit(request(f"gone {i}")) for i in range(3)]
    with pytest.raises(Full):
        engine.submit(request("too early"))
    assert gone[0].cancel() and gone[2].cancel()
    others = [engine.submit(request(f"p{i}")) for i in range(2)]
    with pytest.raises(Full):
        engine.submit(request("too late"))
    version.gate.set()
    assert all(future.result(30) for future in (first, gone[1], *others))


def test_a_backlog_is_answered_by_cheaper_levels_and_says_so(started, three_levels):
    engine, version, first = blocked_engine(started, three_levels, max_batch=2, target_ms=1000.0)
    for size in (1, 2):
        engine._pace.note("full", size, 1.0)
        engine._pace.note("beam", size, 0.2)
    waiting = [engine.submit(request(f"p{i}")) for i in range(30)]
    version.gate.set()
    levels = [future.result(30).level for future in waiting]
    assert first.result(30).level == "full"
    assert set(levels) >= {"beam", "popular"}
    assert levels.count("popular") >= 18, "five cheaper batches fit one second"
    assert levels[0] == "popular", "the oldest get the cheapest level"


def test_a_short_deadline_takes_the_level_that_meets_it(started, three_levels):
    engine = started(three_levels())
    for size in (1, 8):
        engine._pace.note("full", size, 5.0)
        engine._pace.note("beam", size, 0.5)
    assert answer(engine, request("a", within=1.0)).level == "beam"
    assert answer(engine, request("a", within=0.2)).level == "popular"
    assert answer(engine, request("a", within=60.0)).level == "full"
