"""Lists over HTTP: replies, errors and behaviour under load."""

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
    api = client()
    assert suggest(api)["prefix"] == suggest(api, prefix="  ")["prefix"] == ""
    assert len(suggest(api)["suggestions"]) == 10
    assert suggest(api, prefix="watch ")["prefix"] == "watch ", "one space remains"


def test_why_and_the_most_popular_for_comparison(client):
    reply = suggest(client(), prefix="a", k=2, why=True, compare=True, history=["Tent", "lamp"])
    assert reply["most_popular"] == ["a popular 0", "a popular 1"]
    history = [{"text": text, "minutes": None} for text in ("lamp", "tent")]
    assert reply["why"]["history"] == history, "newest first"
    assert reply["why"]["related"][0] == {"text": "a related 0", "id": [7, 1]}
    assert reply["why"]["batch"] == 1 and reply["why"]["model_ms"] >= 0


def test_the_stored_history_of_a_user_reaches_the_model(client):
    api = client()
    for number, query in enumerate(["tent", "lamp", "tent"]):
        feedback(api, request_id=f"r{number}", user_id="u", query=query)
    suggest(api, prefix="a", user_id="u")
    sent = api.version.batches[-1][1][0]
    assert sent.history == ("tent", "lamp") and all(0 <= m < 1 for m in sent.minutes)
    assert len(sent.minutes) == 2, "each with how long ago it was"
    suggest(api, prefix="a", user_id="u", history=["mug"])
    assert api.version.batches[-1][1][0].history == ("mug",), "an explicit history is used instead"
    suggest(api, prefix="a", user_id="u", history=[])
    assert api.version.batches[-1][1][0].history == ()
    suggest(api, prefix="b", user_id="stranger")
    assert api.version.batches[-1][1][0].history == ()


def test_a_sent_history_may_have_ages(client):
    api = client()
    suggest(api, prefix="a", history=["tent", "mug", "tent"], history_minutes=[90, 30.5, 2])
    sent = api.version.batches[-1][1][0]
    assert (sent.history, sent.minutes) == (("tent", "mug"), (2.0, 30.5))
    suggest(api, prefix="a", history=["tent"])
    assert api.version.batches[-1][1][0].minutes == (), "just now"


def test_a_history_is_cut_to_the_length_that_the_model_reads(client):
    api = client()
    suggest(api, history=[f"q{i}" for i in range(30)])
    assert api.version.batches[-1][1][0].history == tuple(f"q{i}" for i in range(29, 19, -1))


def test_profile_values_come_in_the_order_of_the_log(client):
    api = client()
    suggest(api, prefix="a", profile={"age": "18", "gender": "f"})
    assert api.version.batches[-1][1][0].profile == ("f", "18")
    suggest(api, prefix="a", profile={"age": "18"})
    assert api.version.batches[-1][1][0].profile == ("", "18")
    assert field_of(suggest(api, 422, profile={"sex": "f"})) == "profile.sex"


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
def test_the_invalid_field_is_named_without_its_value(client, body, field):
    reply = suggest(client(), 422, **body)
    assert field_of(reply) == field
    assert "ﷺ" not in json.dumps(reply, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"5", b'{"prefix": "\\ud800"}', b"[" * 50_000],
)
def test_an_invalid_body_is_a_client_error(client, content):
    headers = {"content-type": "application/json"}
    reply = client().post("/suggest", content=content, headers=headers)
    assert reply.status_code in (400, 422) and reply.json()["errors"]


def test_other_media_types_are_refused(client):
    """A page of another origin may send text/plain without a preflight request."""
    api = client()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": media_type} if media_type else {}
        content = b'{"request_id": "r1", "query": "a"}'
        assert api.post("/feedback", content=content, headers=headers).status_code == 422
    assert api.store.count() == 0


# ------------------------------------------------------------------ under load


@contextlib.contextmanager
def one_waits(api):
    """The model works on one request, and another waits."""
    api.version.gate.clear()
    asking = [threading.Thread(target=suggest, args=(api,), kwargs={"prefix": p}) for p in "ab"]
    asking[0].start()
    assert api.version.began.wait(30)
    asking[1].start()
    until(lambda: api.engine.waiting == 1)
    yield
    api.version.gate.set()
    for thread in asking:
        thread.join(30)


def test_a_request_that_would_wait_too_long_is_refused_unread(client):
    """The body is not parsed, so a refusal costs almost nothing."""
    api = client(engine={"levels": ("beam",), "max_wait_ms": 0.0, "max_batch": 1}, log=True)
    with one_waits(api), api.engine._queue._changed:  # a refusal needs no lock
        api.engine._queue._free_at = time.monotonic() + 60
        reply = api.post("/suggest", content=b"no JSON")
        assert reply.status_code == 503 and 50 <= int(reply.headers["retry-after"]) <= 60
        assert field_of(reply.json()) == "queue" and "POST /suggest 503" in "\n".join(api.lines)
        assert api.get("/health").status_code == 200
        assert feedback(api, query="a")["stored"] == "new"
    until(lambda: not api.engine.crowded())
    assert suggest(api, prefix="c")["suggestions"]


def test_a_missed_deadline_is_answered(client):
    api = client(engine={"levels": ("beam",), "max_wait_ms": 0.0})
    api.version.gate.clear()
    first = threading.Thread(target=suggest, args=(api,))
    first.start()
    assert api.version.began.wait(30)
    found = []

    def late():
        found.append(api.post("/suggest", json={"prefix": "late", "deadline_ms": 20}))

    second = threading.Thread(target=late)
    second.start()
    time.sleep(1.0)
    api.version.gate.set()
    first.join(30), second.join(30)
    assert found[0].status_code == 504 and field_of(found[0].json()) == "deadline_ms"
    assert [requests[0].prefix for _, requests in api.version.batches] == [""]


def test_without_a_model_only_lists_are_unavailable(client, monkeypatch):
    api = client(engine={"watch_seconds": 600.0})
    monkeypatch.setattr(api.engine, "_current", None)
    assert api.get("/health").json() == {"status": "ok"}
    for reply in (api.get("/ready"), api.post("/suggest", json={})):
        assert reply.status_code == 503 and reply.headers["retry-after"]
        assert field_of(reply.json()) == "model"
    assert feedback(api, query="a")["stored"] == "new"


def test_a_failing_model_is_a_500_without_its_message(client):
    api = client(engine={"levels": ("beam",)})
    api.version.fails = RuntimeError("what somebody typed")
    reply = api.post("/suggest", json={"prefix": "a"})
    assert reply.status_code == 500 and "typed" not in reply.text
    api.version.fails = None
    assert suggest(api, prefix="a")["suggestions"]
