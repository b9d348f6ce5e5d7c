"""Helpers of the service's tests: requests over HTTP or to an engine, and waiting."""

import time

from onesug_jax.serve.requests import SuggestRequest


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


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def request(prefix, history=("h",), **more):
    return SuggestRequest(prefix, history, **more)


def answer(engine, request):
    return engine.submit(request).result(60)


def blocked_engine(started, fake_version, **config):
    """An engine whose model is busy with one request, until `version.gate` opens."""
    version = fake_version()
    config.setdefault("max_wait_ms", 0.0)
    engine = started(version, **config)
    version.gate.clear()
    first = engine.submit(request("first"))
    assert version.began.wait(30)
    return engine, version, first
