"""The HTTP interface: what is answered, what is refused with which message, and who may ask."""

import json
import shutil
import sqlite3
import subprocess
import threading
import time
import uuid

import pytest

from onesug_jax.errors import UserError
from onesug_jax.serve.server import ServerConfig
from tests.serve.test_engine import until


def suggest(client, expect=200, **body):
    reply = client.post("/suggest", json=body)
    assert reply.status_code == expect, reply.text
    return reply.json()


def feedback(client, expect=200, **body):
    reply = client.post("/feedback", json={"request_id": "r1", **body})
    assert reply.status_code == expect, reply.text
    return reply.json()


def field_of(reply):
    return reply["errors"][0]["field"]


# ------------------------------------------------------------------ suggestions


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


def test_a_full_queue_answers_at_once_with_retry_after(client):
    here = client(engine={"queue": 1, "levels": ("beam",), "max_wait_ms": 0.0})
    here.version.gate.clear()
    waiting = [threading.Thread(target=suggest, args=(here,), kwargs={"prefix": p}) for p in "ab"]
    waiting[0].start()
    assert here.version.began.wait(30)
    waiting[1].start()
    until(lambda: here.engine.waiting == 1)
    began = time.monotonic()
    reply = here.post("/suggest", json={"prefix": "c"})
    assert time.monotonic() - began < 5
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
    assert field_of(reply.json()) == "queue"
    here.version.gate.set()
    for thread in waiting:
        thread.join(30)


def test_who_would_wait_too_long_is_turned_away_unread(client):
    """Whatever the body is: it costs nothing to say that there is no place."""
    here = client(engine={"levels": ("beam",), "max_wait_ms": 0.0, "max_batch": 1}, log=True)
    here.version.gate.clear()
    waiting = [threading.Thread(target=suggest, args=(here,), kwargs={"prefix": p}) for p in "ab"]
    waiting[0].start()
    assert here.version.began.wait(30)
    waiting[1].start()
    until(lambda: here.engine.waiting == 1)
    here.engine._room._free_at = time.monotonic() + 60
    reply = here.post("/suggest", content=b"no JSON")
    assert reply.status_code == 503 and 50 <= int(reply.headers["retry-after"]) <= 60
    assert field_of(reply.json()) == "queue" and "POST /suggest 503" in "\n".join(here.said)
    assert here.get("/health").status_code == 200 and feedback(here, query="a")["stored"] == "new"
    here.version.gate.set()
    for thread in waiting:
        thread.join(30)
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


# ------------------------------------------------------------------ feedback and users


def test_feedback_is_taken_once_and_items_are_added(client):
    here = client()
    body = {"user_id": "u", "prefix": "La", "shown": ["Lamp", "mat"], "clicked_position": 0}
    assert feedback(here, **body)["stored"] == "new"
    assert feedback(here, **body)["stored"] == "same"
    assert feedback(here, user_id="u", ordered_items=["i1"])["stored"] == "more"
    assert field_of(feedback(here, 409, user_id="u", query="other")) == "query"
    assert field_of(feedback(here, 409, user_id="v", ordered_items=["i1"])) == "user_id"
    assert field_of(feedback(here, 404, request_id="r9", ordered_items=["i1"])) == "request_id"
    assert here.get("/users/u").json() == {"user_id": "u", "history": ["lamp"], "events": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a\u0000b",
        "a\u001fb",
        "a\u0085b",
        "a\u200bb",
        "\ufeffa",
        "a\x7f",
        "ﷺ" * 20,
        "\U0001f600" * 64,
    ]
    + ["a" * n for n in (64, 65, 128, 129)]
    + [" ", "a\tb", "İ" * 64, "\ue000", "é" * 64],
)
def test_what_one_address_takes_the_other_takes(client, text):
    here = client()

    def refuses(path, **body):
        return here.post(path, json=body).status_code == 422

    def not_stored(**fields):
        return refuses("/feedback", request_id=uuid.uuid4().hex, **{"query": "a", **fields})

    fields = {"prefix": text, "user_id": text, "history": [text], "profile": {"age": text}}
    asked = [refuses("/suggest", **{name: value}) for name, value in fields.items()]
    assert [not_stored(**{name: value}) for name, value in fields.items()] == asked
    assert not_stored(query=text) == not_stored(shown=[text]) == asked[2], "as of the history"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"request_id": "../../etc", "query": "a"}, "request_id"),
        ({"request_id": "", "query": "a"}, "request_id"),
        ({"clicked_position": 0}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": 1}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": -1}, "clicked_position"),
        ({"shown": ["a"], "clicked_position": 0, "query": "b"}, "query"),
        ({"shown": ["a", " "], "clicked_position": 0}, "shown.1"),
        ({"query": "  "}, "query"),
        ({"query": "a", "clicked_items": [""]}, "clicked_items.0"),
        ({"query": "a", "ordered_items": ["i"] * 101}, "ordered_items"),
        ({"query": "a", "timestamp_ms": 5}, "timestamp_ms"),
        ({"query": "a", "profile": {"sex": "f"}}, "profile.sex"),
    ],
)
def test_feedback_that_cannot_be_is_refused(client, body, field):
    here = client()
    assert field_of(feedback(here, 422, **body)) == field
    assert here.store.count() == 0


def test_a_user_is_forgotten_on_request(client):
    here = client()
    name = "a/b ?&%é"
    feedback(here, user_id=name, query="secret")
    where = "/users/a%2Fb%20%3F%26%25%C3%A9"
    assert here.get(where).json()["history"] == ["secret"]
    reply = here.delete(where).json()
    assert (reply["user_id"], reply["deleted"]) == (name, 1)
    memory, model = [one["until"] for one in reply["remains"]]
    assert memory.startswith("each has looked") and model.startswith("the next update")
    assert here.get(where).json()["events"] == 0
    assert here.delete("/users/").status_code == 422, "never everybody whose name is empty"


def test_a_deletion_says_which_exports_remain(client, tmp_path):
    here = client()
    feedback(here, user_id="u", query="secret")
    for name in ("there", "gone"):
        here.store.export(str(tmp_path / f"{name}.parquet"), untrusted=True)
    (tmp_path / "gone.parquet").unlink()
    remains = here.delete("/users/u").json()["remains"]
    assert [one["what"].split(" of ")[0] for one in remains[:-2]] == ["exported log there.parquet"]
    assert "model 0000" in remains[-1]["what"] and str(tmp_path) not in json.dumps(remains)


def test_a_store_that_cannot_write_is_busy_not_broken(client, monkeypatch):
    here = client()

    def fail(event, trusted):
        raise sqlite3.OperationalError("disk I/O error at /secret/place")

    monkeypatch.setattr(here.store, "add", fail)
    reply = here.post("/feedback", json={"request_id": "r", "query": "a"})
    assert reply.status_code == 503 and "secret" not in reply.text and reply.headers["retry-after"]


# ------------------------------------------------------------------ who may ask


def test_with_a_key_everything_but_the_page_and_health_needs_it(client, tmp_path):
    path = tmp_path / "key"
    path.write_text("opensesame\n")
    here = client(api_key_file=str(path), host="0.0.0.0")
    for open_path in ("/", "/docs", "/app.js", "/health", "/ready", "/openapi.json"):
        assert here.get(open_path).status_code == 200, open_path
    asked = [("POST", "/suggest"), ("POST", "/feedback"), ("GET", "/metrics")]
    for method, closed in [*asked, ("GET", "/users/u"), ("DELETE", "/users/u"), ("GET", "/x")]:
        reply = here.request(method, closed, headers={"x-api-key": "wrong"})
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    for headers in ({"x-api-key": "opensesame"}, {"authorization": "Bearer opensesame"}):
        assert here.get("/metrics", headers=headers).status_code == 200
    assert here.get("/metrics", headers={"x-api-key": b"opensesam\xe9"}).status_code == 401


def test_other_machines_only_with_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("ONESUG_API_KEY", raising=False)
    assert ServerConfig().key() is None
    with pytest.raises(UserError, match="api_key_file"):
        ServerConfig(host="0.0.0.0").key()
    assert ServerConfig(host="0.0.0.0", without_key=True).key() is None
    monkeypatch.setenv("ONESUG_API_KEY", "k")
    assert ServerConfig(host="0.0.0.0").key() == "k"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        ServerConfig(api_key_file=str(tmp_path / "empty")).key()
    with pytest.raises(UserError, match="nowhere"):
        ServerConfig(api_key_file=str(tmp_path / "nowhere")).key()


def test_pages_of_other_origins_are_refused_unless_allowed(client):
    here = client(origins=["https://shop.example"])
    for origin, expected in [
        ("http://127.0.0.1:8000", 200),
        ("https://shop.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ]:
        reply = here.post("/suggest", json={}, headers={"origin": origin})
        assert reply.status_code == expected, origin
    ask = {"access-control-request-method": "POST", "origin": "https://shop.example"}
    reply = here.options("/suggest", headers=ask)
    assert reply.headers["access-control-allow-origin"] == "https://shop.example"
    assert here.options("/suggest", headers={**ask, "origin": "https://x"}).status_code == 403


def test_a_page_that_gives_this_machine_another_name_is_refused(client):
    here = client(hosts=["suggest.internal"])
    for host, expected in [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("suggest.internal:80", 200),
        ("evil.example", 421),
        ("", 421),
    ]:
        assert here.get("/health", headers={"host": host}).status_code == expected, host


# ------------------------------------------------------------------ limits, page, logs


def test_a_body_too_large_is_refused_announced_or_not(client):
    here = client(body_bytes=1000)
    headers = {"content-type": "application/json"}
    large = b'{"prefix": "' + b"a" * 2000 + b'"}'
    assert here.post("/suggest", content=large, headers=headers).status_code == 413
    reply = here.post("/suggest", content=iter([large[:900], large[900:]]), headers=headers)
    assert reply.status_code == 413 and field_of(reply.json()) == "body"


def test_the_page_and_its_files_are_served_and_nothing_else(client):
    here = client()
    page = here.get("/")
    assert page.headers["content-type"].startswith("text/html") and 'role="combobox"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in (
        "/index.html",
        "/../pyproject.toml",
        "/..%2f..%2fpyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/web/app.js",
        "/app.js/",
        "/app.js%00",
        "/.%5c.%5capp.js",
        "//etc/passwd",
        "/static/../app.py",
    ):
        reply = here.get(path, follow_redirects=False)
        assert reply.status_code in (404, 307), path
        assert "onesug_jax" not in reply.text and "root:" not in reply.text


@pytest.mark.parametrize("name", ["app.js", "docs.js"])
def test_the_scripts_can_be_read(name, project_root):
    if not shutil.which("node"):
        pytest.skip("needs node to check the syntax of scripts")
    script = project_root / "onesug_jax" / "serve" / "web" / name
    subprocess.run(["node", "--check", str(script)], check=True)


def test_no_page_asks_another_host(client):
    here = client()
    for path in ("/", "/docs", "/app.js", "/docs.js", "/style.css"):
        text = here.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, path


def test_the_interface_describes_itself(client):
    api = client().get("/openapi.json").json()
    assert set(api["paths"]) == {
        "/suggest",
        "/feedback",
        "/users/{user_id}",
        "/health",
        "/ready",
        "/metrics",
    }
    body = api["components"]["schemas"]["SuggestBody"]["properties"]
    assert body["prefix"]["maxLength"] == 64 and body["k"]["maximum"] == 64
    assert {"413", "422", "503"} <= set(api["paths"]["/suggest"]["post"]["responses"])


def test_logs_hold_no_text_unless_asked(client):
    here = client(log=True)
    suggest(here, prefix="secret", history=["private"])
    here.get("/users/somebody")
    said = "\n".join(here.said)
    assert "POST /suggest 200" in said and "GET /users/{user_id:path} 200" in said
    assert not any(word in said for word in ("secret", "private", "somebody"))
    asked = client(log=True, log_text=True, store=here.store)
    suggest(asked, prefix="open")
    assert "'open'" in "\n".join(asked.said)


def test_metrics_count_without_naming_anybody(client):
    here = client()
    suggest(here, prefix="secret")
    suggest(here, prefix="secret")
    feedback(here, user_id="somebody", query="private")
    here.get("/nowhere/secret")
    text = here.get("/metrics").text
    for line in (
        'onesug_answers_total{cached="false",level="beam"} 1.0',
        'onesug_answers_total{cached="true",level="beam"} 1.0',
        'onesug_feedback_total{result="untrusted"} 1.0',
        'onesug_http_requests_total{route="/suggest",status="200"} 2.0',
        'onesug_http_requests_total{route="other",status="404"} 1.0',
        'onesug_version_in_use{version="0000"} 1.0',
    ):
        assert line in text
    assert not any(word in text for word in ("secret", "private", "somebody"))
