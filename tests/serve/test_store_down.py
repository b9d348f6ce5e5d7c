"""Suggestions without the feedback store: damaged, locked, missing, or never opened."""

import os
import sqlite3
import time

import numpy as np
import pytest

from onesug_jax.serve.absent import AbsentStore
from onesug_jax.serve.feedback import Event, FeedbackConfig, FeedbackStore
from onesug_jax.serve.live import LiveCounts
from onesug_jax.stages import serving
from tests.serve.asking import feedback, field_of, suggest


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "feedback" / "events.sqlite")


def assert_lists_without_store(api):
    """Lists are made without a history, feedback is refused, /ready reports the store."""
    assert suggest(api, prefix="a", user_id="u")["suggestions"]
    assert api.version.batches[-1][1][-1].history == ()
    reply = api.post("/feedback", json={"request_id": "r9", "user_id": "u", "query": "b"})
    assert reply.status_code == 503 and field_of(reply.json()) == "store"
    assert reply.headers["retry-after"] and os.path.basename(api.store.path) not in reply.text
    assert api.get("/ready").json()["store"] in ("down", "slow")
    for ask in (api.get, api.delete):
        assert ask("/users/u").status_code == 503


def opened(client, path):
    api = client(store=FeedbackStore(path, FeedbackConfig()))
    feedback(api, user_id="u", query="tent")
    suggest(api, prefix="a", user_id="u")
    assert api.version.batches[-1][1][-1].history == ("tent",)
    assert api.get("/ready").json()["store"] == "ok"
    return api


def test_lists_need_no_file(client, path):
    api = opened(client, path)
    os.rename(path, path + ".gone")
    assert_lists_without_store(api)
    os.rename(path + ".gone", path)
    time.sleep(1.1)  # accesses pause for a second after a failure
    assert api.get("/ready").json()["store"] == "ok"
    suggest(api, prefix="b", user_id="u")
    assert api.version.batches[-1][1][-1].history == ("tent",)
    assert feedback(api, request_id="r2", user_id="u", query="mat")["stored"] == "new"


def test_a_replaced_file_is_not_used(client, path):
    api = opened(client, path)
    os.rename(path, path + ".before")
    with open(path, "wb") as file:
        file.write(b"something else")
    assert_lists_without_store(api)


def test_lists_need_no_readable_file(client, path):
    api = opened(client, path)
    api.store._writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        file.write(b"\xff" * os.path.getsize(path))
    api.store._reading.close()
    api.store._reading = api.store._writer.connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False
    )
    assert_lists_without_store(api)


def test_a_locked_file_is_down_for_writing_only(client, path, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.feedback.BUSY_SECONDS", 0.1)
    api = opened(client, path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert api.get("/ready").json()["store"] == "down"
    reply = api.post("/feedback", json={"request_id": "r9", "query": "b"})
    assert reply.status_code == 503
    suggest(api, prefix="b", user_id="u")
    assert api.version.batches[-1][1][-1].history == ("tent",), "reading goes on"
    other.execute("COMMIT")
    assert feedback(api, request_id="r9", query="b")["stored"] == "new"


def test_a_slow_store_delays_one_request(client, path):
    api = opened(client, path)
    calls = []

    def slow(user_id, most):
        calls.append(user_id)
        time.sleep(1.5)
        return {"tent": 1}

    api.store.history = slow
    for prefix in ("b", "c", "d"):
        suggest(api, prefix=prefix, user_id="u")
        assert api.version.batches[-1][1][-1].history == ()
    assert len(calls) == 1
    assert api.get("/ready").json()["store"] == "slow"


def test_a_store_that_never_opened(client, path):
    assert_lists_without_store(client(store=AbsentStore(path, FeedbackConfig(), "no such place")))


def test_counts_of_a_store_that_cannot_be_read_are_those_of_the_log(tmp_path, path):
    from onesug_jax.logs.asof.state import AsOf

    state = AsOf(["tent"])
    live = LiveCounts(state, AbsentStore(path, FeedbackConfig(), "no such place"))
    assert live.poll() == 0 and live.history("u") == ((), ())
    assert np.isfinite(live.searched("tent"))
    live.close()


def context_of(path, **settings):
    class Context:
        macros = {"WORK_DIR": os.path.dirname(path)}

        @staticmethod
        def configured(name):
            assert name == "FeedbackConfig"
            return lambda: FeedbackConfig(path=path, **settings)

    return Context()


def test_the_service_starts_with_a_damaged_file_unless_required(path):
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"damaged" * 1000)
    lines = []
    store = serving._store_or_none(context_of(path), lines.append)
    assert isinstance(store, AbsentStore) and store.path == path
    assert "starts without the feedback store" in lines[0] and "FeedbackConfig.required" in lines[0]
    with pytest.raises(serving.UserError, match=r"FeedbackConfig\.path"):
        serving._store_or_none(context_of(path, required=True), lines.append)
    with open(path, "rb") as file:
        assert file.read(7) == b"damaged", "it is not overwritten"


def test_a_failing_event_affects_no_other(path):
    store = FeedbackStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # so that they share one transaction
    first = store.add(Event("r0", query="a"))
    bad = [
        store.add(Event("r1", query="a", timestamp_ms=2**70)),
        store.add(Event("r2", query="half \ud83d")),
        store.add(Event("r3", query="a", profile={"age": object()})),
        store._writer.submit(lambda connection: 1 / 0),
    ]

    def half(connection):
        connection.execute("DELETE FROM events")
        raise KeyError("half done")

    bad.append(store._writer.submit(half))
    last = store.add(Event("r4", query="b"))
    other.execute("COMMIT")
    assert first.result(30) == last.result(30) == "new"
    kinds = [type(future.exception(30)) for future in bad]
    assert kinds == [OverflowError, UnicodeEncodeError, TypeError, ZeroDivisionError, KeyError]
    assert store.count() == 2, "a failed change is rolled back"
    assert store.add(Event("r5", query="c")).result(30) == "new"
    store.close()
