"""Lists over HTTP: what is answered, what is refused with which message, and under load."""

import contextlib
import json
import threading
import time

import pytest

from tests.serve.asking import feedback, field_of, suggest, until


def test_a_list_best_first_with_its_level_version_and_id(client):
    reply = suggest(client(), prefix="Lego  S", k=3)
    assert reply["prefix"] == "lego s"
    assert [one["text"] for one in reply["suggestions"]] == ["lego s0", "lego s1", "lego s2"]
    assert [one["score"] for one in reply["suggestions"]] == [0.0, -1.0, -2.0]
    assert (reply["level"], reply["version"], reply["cached"]) == ("beam", "0000", False)
    assert len(reply["request_id"]) == 58 and reply["milliseconds"] > 0
    assert reply["most_popular"] is None and reply["why"] is None


def test_an_empty_box_and_an_empty_body_are_answered(client):
    here = client()
    assert suggest(here)["prefix"] == suggest(here, prefix="  ")["prefix"] == ""
    assert len(suggest(here)["suggestions"]) == 10
    assert suggest(here, prefix="watch ")["prefix"] == "watch ", "one space remains"


def test_why_and_the_most_popular_beside(client):
    reply = suggest(client(), prefix="a", k=2, why=True, compare=True, history=["Tent", "lamp"])
    assert reply["most_popular"] == ["a popular 0", "a popular 1"]
    history = [{"text": text, "minutes": None} for text in ("lamp", "tent")]
    assert reply["why"]["history"] == history, "newest first"
    assert reply["why"]["related"][0] == {"text": "a related 0", "id": [7, 1]}
    assert reply["why"]["batch"] == 1 and reply["why"]["model_ms"] >= 0


def test_the_stored_history_of_a_user_reaches_the_model(client):
    here = client()
    for number, query in enumerate(["tent", "lamp", "tent"]):
        feedback(here, request_id=f"r{number}", user_id="u", query=query)
    suggest(here, prefix="a", user_id="u")
    asked = here.version.batches[-1][1][0]
    assert asked.history == ("tent", "lamp") and all(0 <= m < 1 for m in asked.minutes)
    assert len(asked.minutes) == 2, "each with how long ago it was"
    suggest(here, prefix="a", user_id="u", history=["mug"])
    assert here.version.batches[-1][1][0].history == ("mug",), "an explicit history is used instead"
    suggest(here, prefix="a", user_id="u", history=[])
    assert here.version.batches[-1][1][0].history == ()
    suggest(here, prefix="b", user_id="stranger")
    assert here.version.batches[-1][1][0].history == ()


def test_a_history_that_is_sent_may_tell_its_ages(client):
    here = client()
    suggest(here, prefix="a", history=["tent", "mug", "tent"], history_minutes=[90, 30.5, 2])
    asked = here.version.batches[-1][1][0]
    assert (asked.history, asked.minutes) == (("tent", "mug"), (2.0, 30.5))
    suggest(here, prefix="a", history=["tent"])
    assert here.version.batches[-1][1][0].minutes == (), "just now"


def test_only_as_much_history_as_the_model_was_trained_on(client):
    here = client()
    suggest(here, history=[f"q{i}" for i in range(30)])
    assert here.version.batches[-1][1][0].history == tuple(f"q{i}" for i in range(29, 19, -1))


def test_profile_values_come_in_the_order_of_the_log(client):
    here = client()
    suggest(here, prefix="a", profile={"age": "18", "gender": "f"})
    assert here.version.batches[-1][1][0].profile == ("f", "18")
    suggest(here, prefix="a", profile={"age": "18"})
    assert here.version.batches[-1][1][0].profile == ("", "18")
    assert field_of(suggest(here, 422, profile={"sex": "f"})) == "profile.sex"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prefix": 5}, "prefix"),
        ({"prefix": None}, "prefix"),
        ({"prefix": "a" * 65}, "prefix"),
        ({"prefix": "ﷺ" * 20}, "prefix"),  # 20 characters that normalise to 360
        ({"prefix": "a\u0000b"}, "prefix"),
        ({"prefix": "a", "k": 0}, "k"),
        ({"prefix": "a", "k": "5"}, "k"),
        ({"prefix": "a", "k": 1.5}, "k"),
        ({"prefix": "a", "k": 65}, "k"),
        ({"prefix": "a", "deadline_ms": -1}, "deadline_ms"),
        ({"prefix": "a", "deadline_ms": 10**30}, "deadline_ms"),
        ({"prefix": "a", "user_id": "u" * 129}, "user_id"),
        ({"prefix": "a", "history": "tent"}, "history"),
        ({"prefix": "a", "history": ["tent", ""]}, "history.1"),
        ({"prefix": "a", "history": ["t"] * 51}, "history"),
        ({"prefix": "a", "history": ["t"], "history_minutes": [1, 2]}, "history_minutes"),
        ({"prefix": "a", "history_minutes": [1]}, "history_minutes"),
        ({"prefix": "a", "history": ["t"], "history_minutes": [-1]}, "history_minutes.0"),
        ({"prefix": "a", "profile": {"query": "x"}}, "profile"),
        ({"prefix": "a", "profile": {"age": 18}}, "profile.age"),
        ({"prefix": "a", "profile": ["f"]}, "profile"),
        ({"prefix": "a", "perfix": "b"}, "perfix"),
    ],
)
def test_the_wrong_field_is_named_and_nothing_is_repeated(client, body, field):
    reply = suggest(client(), 422, **body)
    assert field_of(reply) == field
    assert "ﷺ" not in json.dumps(reply, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"5", b'{"prefix": "\\ud800"}', b"[" * 50_000],
)
def test_what_is_no_body_is_a_mistake_of_the_client(client, content):
    headers = {"content-type": "application/json"}
    reply = client().post("/suggest", content=content, headers=headers)
    assert reply.status_code in (400, 422) and reply.json()["errors"]


def test_other_media_types_are_refused(client):
    """A page of another origin may send text/plain without asking first: it does nothing."""
    here = client()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": media_type} if media_type else {}
        content = b'{"request_id": "r1", "query": "a"}'
        assert here.post("/feedback", content=content, headers=headers).status_code == 422
    assert here.store.count() == 0


# ------------------------------------------------------------------ under load


@contextlib.contextmanager
def one_waits(here):
    """The model is at one request, and another waits for it."""
    here.version.gate.clear()
    asking = [threading.Thread(target=suggest, args=(here,), kwargs={"prefix": p}) for p in "ab"]
    asking[0].start()
    assert here.version.began.wait(30)
    asking[1].start()
    until(lambda: here.engine.waiting == 1)
    yield
    here.version.gate.set()
    for thread in asking:
        thread.join(30)


def test_who_would_wait_too_long_is_turned_away_unread(client):
    """Whatever the body is: it costs nothing to say that there is no place."""
    here = client(engine={"levels": ("beam",), "max_wait_ms": 0.0, "max_batch": 1}, log=True)
    with one_waits(here), here.engine._queue._changed:  # no lock is waited for
        here.engine._queue._free_at = time.monotonic() + 60
        reply = here.post("/suggest", content=b"no JSON")
        assert reply.status_code == 503 and 50 <= int(reply.headers["retry-after"]) <= 60
        assert field_of(reply.json()) == "queue" and "POST /suggest 503" in "\n".join(here.said)
        assert here.get("/health").status_code == 200
        assert feedback(here, query="a")["stored"] == "new"
    until(lambda: not here.engine.crowded())
    assert suggest(here, prefix="c")["suggestions"]


def test_a_missed_deadline_is_answered(client):
    here = client(engine={"levels": ("beam",), "max_wait_ms": 0.0})
    here.version.gate.clear()
    first = threading.Thread(target=suggest, args=(here,))
    first.start()
    assert here.version.began.wait(30)
    found = []

    def late():
        found.append(here.post("/suggest", json={"prefix": "late", "deadline_ms": 20}))

    second = threading.Thread(target=late)
    second.start()
    time.sleep(1.0)
    here.version.gate.set()
    first.join(30), second.join(30)
    assert found[0].status_code == 504 and field_of(found[0].json()) == "deadline_ms"
    assert [requests[0].prefix for _, requests in here.version.batches] == [""]


def test_before_the_model_is_there_only_lists_wait(client, monkeypatch):
    here = client(engine={"watch_seconds": 600.0})
    monkeypatch.setattr(here.engine, "_current", None)
    assert here.get("/health").json() == {"status": "ok"}
    for reply in (here.get("/ready"), here.post("/suggest", json={})):
        assert reply.status_code == 503 and reply.headers["retry-after"]
        assert field_of(reply.json()) == "model"
    assert feedback(here, query="a")["stored"] == "new"


def test_a_model_that_fails_is_the_servers_fault_and_tells_nothing(client):
    here = client(engine={"levels": ("beam",)})
    here.version.fails = RuntimeError("what somebody typed")
    reply = here.post("/suggest", json={"prefix": "a"})
    assert reply.status_code == 500 and "typed" not in reply.text
    here.version.fails = None
    assert suggest(here, prefix="a")["suggestions"]
