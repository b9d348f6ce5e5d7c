"""Suggestions without the feedback store: damaged, locked, vanished, or never opened."""

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


def lives_on(here):
    """Lists come, without a history; feedback is refused; /ready says how the store is."""
    assert suggest(here, prefix="a", user_id="u")["suggestions"]
    assert here.version.batches[-1][1][-1].history == ()
    reply = here.post("/feedback", json={"request_id": "r9", "user_id": "u", "query": "b"})
    assert reply.status_code == 503 and field_of(reply.json()) == "store"
    assert reply.headers["retry-after"] and os.path.basename(here.store.path) not in reply.text
    assert here.get("/ready").json()["store"] in ("down", "slow")
    for ask in (here.get, here.delete):
        assert ask("/users/u").status_code == 503


def opened(client, path):
    here = client(store=FeedbackStore(path, FeedbackConfig()))
    feedback(here, user_id="u", query="tent")
    suggest(here, prefix="a", user_id="u")
    assert here.version.batches[-1][1][-1].history == ("tent",)
    assert here.get("/ready").json()["store"] == "ok"
    return here


def test_a_file_that_vanishes_takes_no_list_with_it(client, path):
    here = opened(client, path)
    os.rename(path, path + ".gone")
    lives_on(here)
    os.rename(path + ".gone", path)
    time.sleep(1.1)  # a store that failed is left alone for a second
    assert here.get("/ready").json()["store"] == "ok"
    suggest(here, prefix="b", user_id="u")
    assert here.version.batches[-1][1][-1].history == ("tent",)
    assert feedback(here, request_id="r2", user_id="u", query="mat")["stored"] == "new"


def test_a_file_that_another_replaces_is_not_taken_for_the_store(client, path):
    here = opened(client, path)
    os.rename(path, path + ".before")
    with open(path, "wb") as file:
        file.write(b"something else")
    lives_on(here)


def test_a_file_that_is_damaged_while_it_is_read_takes_no_list_with_it(client, path):
    here = opened(client, path)
    here.store._writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        file.write(b"\xff" * os.path.getsize(path))
    here.store._reading.close()
    here.store._reading = here.store._writer.connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False
    )
    lives_on(here)


def test_a_file_that_another_process_holds_is_down_for_writing_only(client, path, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.feedback.BUSY_SECONDS", 0.1)
    here = opened(client, path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert here.get("/ready").json()["store"] == "down"
    reply = here.post("/feedback", json={"request_id": "r9", "query": "b"})
    assert reply.status_code == 503
    suggest(here, prefix="b", user_id="u")
    assert here.version.batches[-1][1][-1].history == ("tent",), "reading goes on"
    other.execute("COMMIT")
    assert feedback(here, request_id="r9", query="b")["stored"] == "new"


def test_a_slow_store_costs_a_request_a_moment_and_the_next_none(client, path):
    here = opened(client, path)
    calls = []

    def slow(user_id, most):
        calls.append(user_id)
        time.sleep(1.5)
        return {"tent": 1}

    here.store.history = slow
    for prefix in ("b", "c", "d"):
        suggest(here, prefix=prefix, user_id="u")
        assert here.version.batches[-1][1][-1].history == ()
    assert len(calls) == 1
    assert here.get("/ready").json()["store"] == "slow"


def test_a_store_that_never_opened(client, path):
    lives_on(client(store=AbsentStore(path, FeedbackConfig(), "no such place")))


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


def test_a_damaged_file_does_not_keep_the_service_from_starting_unless_asked(path):
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"damaged" * 1000)
    said = []
    store = serving._store_or_none(context_of(path), said.append)
    assert isinstance(store, AbsentStore) and store.path == path
    assert "starts without the feedback store" in said[0] and "FeedbackConfig.required" in said[0]
    with pytest.raises(serving.UserError, match=r"FeedbackConfig\.path"):
        serving._store_or_none(context_of(path, required=True), said.append)
    with open(path, "rb") as file:
        assert file.read(7) == b"damaged", "nothing of it is overwritten"


def test_any_failure_of_one_event_fails_that_event_alone(path):
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
    assert store.count() == 2, "what a failed change did is taken back"
    assert store.add(Event("r5", query="c")).result(30) == "new"
    store.close()
