"""The engine: batches, queue, deadlines, the ladder, what is kept, and the exchange of versions."""

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from onesug_jax.errors import UserError
from onesug_jax.serve.engine import Engine, EngineConfig, Full, Late, NotReady
from onesug_jax.serve.served import Ask, Recent


def asked(prefix, history=("h",), **more):
    return Ask(prefix, history, **more)


def answer(engine, ask):
    return engine.submit(ask).result(60)


def blocked_engine(started, pretended, **config):
    """An engine whose model is busy with one request, until `served.gate` opens."""
    served = pretended()
    config.setdefault("max_wait_ms", 0.0)
    engine = started(served, **config)
    served.gate.clear()
    first = engine.submit(asked("first"))
    assert served.began.wait(30)
    return engine, served, first


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ------------------------------------------------------------------ batches


def test_requests_that_arrive_together_become_one_batch(started, pretended):
    engine, served, first = blocked_engine(started, pretended, max_batch=4, ladder=("beam",))
    others = [engine.submit(asked(f"p{i}")) for i in range(6)]
    served.gate.set()
    for i, future in enumerate(others):
        assert future.result(30).listed.texts[0] == f"p{i}0", "each its own list"
    assert first.result(30).batch == 1
    assert [len(asks) for _, asks in served.batches] == [1, 4, 2]


def test_the_first_of_a_batch_waits_no_longer_than_it_must(started, pretended):
    engine = started(pretended(), max_batch=2, max_wait_ms=60_000.0, deadline_ms=120_000.0)
    lonely = engine.submit(asked("a"))
    time.sleep(0.1)
    assert not lonely.done()
    engine.submit(asked("b"))
    assert lonely.result(30).batch == 2, "a full batch goes at once"
    quick = started(pretended(), max_batch=8, max_wait_ms=1.0)
    assert answer(quick, asked("a")).batch == 1


def test_a_real_model_answers_through_the_engine(started, tiny):
    engine = started(tiny(), lengths=(1.0,), nodes=(64,), ladder=("beam",), deadline_ms=60_000.0)
    with ThreadPoolExecutor(8) as pool:
        prefixes = ["la", "m", "tent", "拖", "lan", ""]
        answers = list(pool.map(lambda p: answer(engine, asked(p)), prefixes))
    for prefix, found in zip(prefixes, answers, strict=True):
        assert found.rung == "beam" and found.version == "0000"
        assert found.listed.texts and all(text.startswith(prefix) for text in found.listed.texts)


def test_a_batch_that_fails_fails_alone(started, pretended):
    served = pretended()
    engine = started(served, ladder=("beam",))
    served.fails = RuntimeError("q7zwx")
    with pytest.raises(RuntimeError, match="beam failed: RuntimeError") as told:
        answer(engine, asked("a"))
    assert "q7zwx" not in "".join(traceback.format_exception(told.value)), "servers log these"
    assert "RuntimeError" in engine.said[-1] and "q7zwx" not in engine.said[-1]
    served.fails = None
    assert answer(engine, asked("a")).listed.texts


def test_where_the_model_fails_the_most_popular_answer(started, pretended):
    served = pretended()
    engine = started(served)
    served.fails = RuntimeError("broken")
    found = answer(engine, asked("a", ()))
    assert found.rung == "popular" and found.listed.texts[0] == "a popular 0"
    served.fails = None
    found = answer(engine, asked("a", ()))
    assert found.rung == "beam" and not found.cached


def test_where_even_the_most_popular_fail_the_engine_lives_on(started, pretended, monkeypatch):
    served = pretended()
    engine = started(served)
    served.fails = RuntimeError("broken")
    with monkeypatch.context() as broken:
        broken.setattr(served, "popular", lambda prefix: 1 / 0)
        with pytest.raises(RuntimeError, match="beam failed"):
            answer(engine, asked("a", ()))
    served.fails = None
    assert answer(engine, asked("a", ())).rung == "beam"


def test_a_list_for_comparison_is_no_answer(started, pretended):
    engine = started(pretended())
    before = engine.metrics.text(0)
    assert engine.popular(asked("a", k=3)).listed.texts[0] == "a popular 0"
    assert engine.metrics.text(0) == before


# ------------------------------------------------------------------ the queue


def test_a_full_queue_refuses_at_once_and_loses_nobody(started, pretended):
    engine, served, first = blocked_engine(started, pretended, queue=3, ladder=("beam",))
    accepted = [engine.submit(asked(f"p{i}")) for i in range(3)]
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(Full) as refused:
            engine.submit(asked("more"))
    assert time.monotonic() - began < 1 and refused.value.after > 0
    served.gate.set()
    assert all(future.result(30).listed.texts for future in [first, *accepted])
    assert b'unanswered_total{why="refused"} 50.0' in engine.metrics.text(0)


def test_who_would_be_late_anyway_is_refused(started, pretended):
    engine, served, first = blocked_engine(started, pretended, ladder=("beam",), max_batch=1)
    for _ in range(30):
        engine._pace.note("beam", 1, 2.0)
    second = engine.submit(asked("b", within=60.0))
    with pytest.raises(Full):
        engine.submit(asked("c", within=3.0))
    served.gate.set()
    assert first.result(30) and second.result(30)


def test_a_request_past_its_deadline_never_reaches_the_model(started, pretended):
    engine, served, first = blocked_engine(started, pretended, ladder=("beam",))
    late = engine.submit(asked("late", within=0.05))
    in_time = engine.submit(asked("in time", within=30.0))
    time.sleep(0.1)
    served.gate.set()
    with pytest.raises(Late):
        late.result(30)
    assert in_time.result(30).listed.texts
    seen = [ask.prefix for _, asks in served.batches for ask in asks]
    assert seen == ["first", "in time"]


def test_a_client_that_has_gone_is_not_served(started, pretended):
    engine, served, _ = blocked_engine(started, pretended, ladder=("beam",))
    gone = engine.submit(asked("gone"))
    stays = engine.submit(asked("stays"))
    assert gone.cancel()
    served.gate.set()
    assert stays.result(30).listed.texts
    assert [ask.prefix for ask in served.batches[-1][1]] == ["stays"]


def test_closing_answers_what_was_accepted_and_accepts_no_more(started, pretended):
    engine, served, first = blocked_engine(started, pretended, ladder=("beam",))
    accepted = [engine.submit(asked(f"p{i}")) for i in range(20)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: not engine.ready)
    with pytest.raises(NotReady):
        engine.submit(asked("too late"))
    served.gate.set()
    closing.join(30)
    assert all(future.result(0).listed.texts for future in [first, *accepted])


def test_places_of_clients_that_have_gone_are_given_to_others(started, pretended):
    engine, served, first = blocked_engine(started, pretended, queue=3, ladder=("beam",))
    gone = [engine.submit(asked(f"gone {i}")) for i in range(3)]
    with pytest.raises(Full):
        engine.submit(asked("too early"))
    assert gone[0].cancel() and gone[2].cancel()
    others = [engine.submit(asked(f"p{i}")) for i in range(2)]
    with pytest.raises(Full):
        engine.submit(asked("too late"))
    served.gate.set()
    assert all(future.result(30) for future in (first, gone[1], *others))


# ------------------------------------------------------------------ the ladder


def test_a_backlog_is_answered_by_cheaper_rungs_and_says_so(started, pretended):
    engine, served, first = blocked_engine(
        started, pretended, max_batch=2, target_ms=1000.0, queue=100
    )
    for size in (1, 2):
        engine._pace.note("beam", size, 1.0)
        engine._pace.note("score", size, 0.2)
    waiting = [engine.submit(asked(f"p{i}")) for i in range(30)]
    served.gate.set()
    rungs = [future.result(30).rung for future in waiting]
    assert first.result(30).rung == "beam"
    assert set(rungs) >= {"score", "popular"}
    assert rungs.count("popular") >= 18, "five scored batches fit one second"
    assert rungs[0] == "popular", "those who waited longest make room"


def test_a_short_deadline_takes_the_rung_that_meets_it(started, pretended):
    engine = started(pretended())
    for size in (1, 8):
        engine._pace.note("beam", size, 5.0)
        engine._pace.note("score", size, 0.5)
    assert answer(engine, asked("a", within=1.0)).rung == "score"
    assert answer(engine, asked("a", within=0.2)).rung == "popular"
    assert answer(engine, asked("a", within=60.0)).rung == "beam"


# ------------------------------------------------------------------ what is kept


def test_finished_lists_are_kept_for_those_without_a_history(started, pretended):
    served = pretended()
    engine = started(served)
    first, again = (answer(engine, asked("a", ())) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.listed == first.listed and len(served.batches) == 1
    assert not answer(engine, asked("a", ("tent",))).cached, "a history makes another list"
    assert not answer(engine, asked("a", (), profile=("f", ""))).cached
    assert len(answer(engine, asked("a", (), k=3)).listed.texts) == 3
    assert b'kept_lists_total{found="true"} 2.0' in engine.metrics.text(0)


def test_lists_of_lower_rungs_are_not_kept(started, pretended):
    engine = started(pretended(), ladder=("beam", "score"))
    for size in (1, 8):
        engine._pace.note("beam", size, 5.0)
    assert answer(engine, asked("a", (), within=1.0)).rung == "score"
    assert not answer(engine, asked("a", (), within=60.0)).cached


def test_changed_terms_are_noticed_and_a_mistake_in_them_told(started, pretended):
    served = pretended()
    engine = started(served)
    served.terms.append(True)
    until(lambda: "serve: blocked terms read again" in engine.said)
    served.terms.append(UserError("blocked.txt: expected UTF-8"))
    until(lambda: any("expected UTF-8" in line for line in engine.said))
    assert answer(engine, asked("a")).listed.texts


def test_a_list_begun_under_the_old_terms_is_not_kept_for_the_new(started, pretended):
    served = pretended()
    engine = started(served)
    served.gate.clear()
    under_way = engine.submit(asked("b", ()))
    assert served.began.wait(30)
    served.kept = Recent(100)  # as `Served.read_terms` leaves it
    served.gate.set()
    under_way.result(30)
    assert len(served.kept) == 0


# ------------------------------------------------------------------ versions


def exchanged(engine, served):
    engine.versions[served.path] = served
    engine.in_use[0] = served.path


def test_another_version_takes_over_without_losing_a_request(started, pretended):
    """Requests keep coming while versions go forth and back: all are answered, by one or other."""
    engine = started(pretended("0000"), max_batch=4, queue=10_000, ladder=("beam",))
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
            until(lambda wanted=version: engine.served.version == wanted)
            time.sleep(0.05)
        stop.set()
        for future in asking:
            future.result(30)
    assert set(answers) == {"0000", "0001", "0002"}
    assert answer(engine, asked("last")).version == "0002"
    assert not engine._queue


def test_kept_lists_go_with_their_version(started, pretended):
    engine = started(pretended("0000"))
    answer(engine, asked("a", ()))
    exchanged(engine, pretended("0001"))
    until(lambda: engine.served.version == "0001")
    found = answer(engine, asked("a", ()))
    assert not found.cached and found.version == "0001"


def test_a_batch_that_has_begun_ends_with_its_own_version(started, pretended):
    engine, served, first = blocked_engine(started, pretended)
    exchanged(engine, pretended("0001"))
    until(lambda: engine.served.version == "0001")
    served.gate.set()
    assert first.result(30).version == "0000"


def test_a_version_that_cannot_be_loaded_changes_nothing(started, pretended):
    engine = started(pretended("0000"))
    engine.in_use[0] = "/work/0001"  # nothing is there: loading it raises KeyError
    until(lambda: engine.said and "/work/0001: KeyError" in engine.said[-1])
    assert answer(engine, asked("a")).version == "0000"
    time.sleep(0.1)
    assert len([line for line in engine.said if "KeyError" in line]) == 1, "told once"
    exchanged(engine, pretended("0002"))
    until(lambda: engine.served.version == "0002")


def test_a_first_version_that_cannot_be_loaded_is_told():
    def load(path):
        raise UserError("no model here")

    engine = Engine(lambda: "/work", load, EngineConfig(), say=lambda line: None)
    with pytest.raises(NotReady):
        engine.submit(asked("a"))
    with pytest.raises(UserError, match="no model here"):
        engine.start().wait_ready(30)
    engine.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"target_ms": 0}, "target_ms"),
        ({"ladder": ()}, "in this order"),
        ({"ladder": ("score", "beam")}, "in this order"),
        ({"ladder": ("beam", "best")}, "hybrid, beam, score, popular"),
        ({"lengths": (0.5,)}, "the largest 1"),
        ({"nodes": (4,)}, "16 up"),
    ],
)
def test_settings_that_make_no_sense_are_told(wrong, told):
    with pytest.raises(UserError, match=told):
        EngineConfig(**wrong)


def test_batch_sizes_that_are_compiled():
    sizes = {most: EngineConfig(max_batch=most).batch_sizes for most in (1, 2, 8, 32, 64)}
    assert sizes == {1: (1,), 2: (1, 2), 8: (1, 8), 32: (1, 4, 32), 64: (1, 8, 64)}
