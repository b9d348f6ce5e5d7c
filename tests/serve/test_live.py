"""Feedback moves the counts, after a crash and on every server alike; what is refused does not."""

import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from onesug_jax.decode.known import Filter
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.schema import Level
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.served import Served
from onesug_jax.tasks.features import FeatureSpec
from tests.serve.conftest import QUERIES

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = int(1000 * time.time())
AT_ONCE = AsOfConfig(freshness_ms=0, conversion_delay_ms=0)
LATER = NOW + 600_000


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "events.sqlite")


@pytest.fixture
def store(path):
    made = FeedbackStore(path)
    yield made
    made.close()


@pytest.fixture
def opened(store):
    """`opened(**LiveCounts)`: counts over the store, closed at the end."""
    found = []

    def make(state=None, at=None, **more):
        state = AsOf(["lamp", "lantern"], AT_ONCE) if state is None else state
        found.append(LiveCounts(state, at or store, **more))
        return found[-1]

    yield make
    for live in found:
        live.close()


def event(number, query="lamp", user="u", **more):
    given = {"prefix": "la", "timestamp_ms": NOW - 1000 + number, "user_id": user, "query": query}
    return Event(request_id=f"r{number}", **{**given, **more})


def put(store, *events, **more):
    return [store.add(one, **more).result(30) for one in events]


def counts(live):
    """Text -> log counts of the candidates of "la"."""
    items = live.request("la", "", LATER)
    there = items.candidates > 0
    texts = [live.text(int(number) - 1) for number in items.candidates[there]]
    return dict(zip(texts, items.candidate_counts[there].tolist(), strict=True))


def test_searches_and_orders_move_the_counts(store, opened):
    live = opened()
    put(store, event(1), event(2, "lantern"), event(3, "lantern"), event(3, "lantern"))
    put(store, event(2, "", ordered_items=["i"]), event(1, "", clicked_items=["i"]))
    put(store, event(1, "", clicked_items=["i", "j"], ordered_items=["j"]))
    assert live.poll() == 6 and live.poll() == 0
    assert live.complete("la", 5) == ["lantern", "lamp"]
    orders, clicks = (AT_ONCE.columns.index(name) for name in ("orders", "item_clicks"))
    found = {text: np.exp(row) for text, row in counts(live).items()}
    assert found["lantern"][0] == pytest.approx(2) and found["lamp"][0] == pytest.approx(1)
    for text in ("lamp", "lantern"):
        assert found[text][orders] == found[text][clicks] == pytest.approx(1)
    assert live.searches(["lantern", "unseen"])[:, 0].tolist() == [2, 0]


def test_servers_on_one_store_agree_and_so_does_one_that_starts_later(store, path, opened):
    other_store = FeedbackStore(path)
    try:
        here, there = opened(), opened(at=other_store)
        for number in range(40):
            put((store, other_store)[number % 2], event(number, f"la{number % 5}"))
            if number % 3 == 0:
                put(other_store, event(number, "", ordered_items=["i"]))
            if number % 7 == 0:
                here.poll()
        here.poll(), there.poll()
        assert counts(here) == counts(there) == counts(opened())
        assert len(counts(here)) == 5
    finally:
        other_store.close()


def test_what_is_not_accepted_is_stored_but_never_counted(store, path, opened):
    live = opened(accept=lambda event: event.user_id != "bot")
    for one in (event(1), event(2, "lantern", user="bot")):
        put(store, one, counted=live.accept(one))
    put(store, event(2, "", user="bot", ordered_items=["i"]))
    live.poll()
    assert set(counts(live)) == set(counts(opened())) == {"lamp"}
    assert store.count() == 2


def test_a_new_query_appears_when_enough_visitors_have_searched_it(store, opened):
    live = opened(AsOf(["lamp"], AsOfConfig(freshness_ms=0, min_users=2)))
    put(store, event(1, "lava lamp"), event(2, "lava lamp"))
    live.poll()
    assert live.complete("lav", 5) == [] and len(live) == 1
    put(store, event(3, "lava lamp", user="", session_id="s"))
    live.poll()
    assert live.complete("lav", 5) == ["lava lamp"] and len(live) == 2


def test_events_of_the_log_that_was_trained_on_count_once(store, opened):
    put(store, event(1), event(2))
    state = AsOf(["lamp"], AT_ONCE)
    state.observe(event(1).timestamp_ms, "u", "la", "lamp", Level.CLICK)
    state.settle()
    live = opened(state)
    assert live.searches(["lamp"])[0, 0] == 2


def test_forgotten_users_are_gone_from_history_and_journal(store, path, opened):
    live = opened()
    put(store, event(1), event(2, user="other"))
    live.poll()
    assert store.forget("u").result(30) == 1
    live.forget("u")
    assert not live.request("la", "u", LATER).history.any()
    assert live.request("la", "other", LATER).history.any()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT request_id FROM journal").fetchall() == [("r2",)]
    put(store, event(3))
    assert live.poll() == 1, "numbers of the journal are not given again"
    assert opened().searches(["lamp"])[0, 0] == 2


def test_a_store_of_the_version_before_is_counted(path, opened):
    store = FeedbackStore(path)
    put(store, event(2, "lantern", clicked_items=["i"], ordered_items=["i"]), event(1))
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER journal_follows")
        other.execute("DROP TABLE journal")
        other.execute("PRAGMA user_version = 2")
    again = FeedbackStore(path)
    try:
        live = opened(at=again)
        found = counts(live)
        assert set(found) == {"lamp", "lantern"}
        assert np.exp(found["lantern"][AT_ONCE.columns.index("orders")]) == pytest.approx(1)
        put(again, event(1, "", ordered_items=["i"]))
        assert live.poll() == 1
    finally:
        again.close()


def test_a_server_that_is_killed_counts_the_same_again(path):
    code = f"""
import os, signal, sys
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.served import Served
from onesug_jax.tasks.features import FeatureSpec
store = FeedbackStore({path!r})
live = LiveCounts(AsOf([]), store)
for n in range(30):
    ordered = ["i"] * (n % 2)
    store.add(Event(f"r{{n}}", "u", timestamp_ms={NOW} - 500_000 + n, query=f"q{{n % 3}}",
                    ordered_items=ordered)).result(30)
    live.poll()
live.request("q", "", {LATER})
print(live.searches(["q0", "q1", "q2"])[:, 0].tolist(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = FeedbackStore(path)
    live = LiveCounts(AsOf([]), store)
    live.request("q", "", LATER)
    found = live.searches(["q0", "q1", "q2"])[:, 0].tolist()
    assert str(found) == done.stdout.strip() == "[10.0, 10.0, 10.0]"
    live.close()
    store.close()


# ------------------------------------------------------------------ in the service


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def served_with(live):
    """A version without a model, which answers by popularity alone."""
    known = RelatedQueries(CompletionIndex.from_counts([*QUERIES], [*QUERIES.values()]), 4)
    suggester = types.SimpleNamespace(
        shown=Filter(),
        show=lambda shown: None,
        rehearse=lambda mode, *shape: None,
        config=types.SimpleNamespace(returned=16),
        featurizer=types.SimpleNamespace(spec=FeatureSpec()),
    )
    return Served("0000", "/work/0000", suggester, known, live=live)


def test_the_service_lists_what_is_searched_now(client, store):
    live = LiveCounts(AsOf(sorted(QUERIES), AT_ONCE), store)
    here = client(served_with(live), {"ladder": ("popular",)}, store=store)
    body = {"prefix": "la", "why": True}
    assert here.post("/suggest", json=body).json()["suggestions"] == []
    for number, query in enumerate(["lamp red", "lava lamp", "lava lamp"]):
        sent = {"request_id": f"r{number}", "query": query, "prefix": "la"}
        assert here.post("/feedback", json=sent).json()["stored"] == "new"
    wait_until(lambda: live.searches(["lava lamp"])[0, 0] == 2)
    reply = here.post("/suggest", json=body).json()
    assert [one["text"] for one in reply["suggestions"]] == ["lava lamp", "lamp red"]
    first = reply["why"]["now"][0]
    assert first["text"] == "lava lamp" and first["searches"]["searches_all"] == 2
    assert set(first["searches"]) == set(live.columns)


def test_the_service_asks_whether_an_event_counts(client, store):
    live = LiveCounts(AsOf([], AT_ONCE), store, accept=lambda event: event.query != "spam")
    here = client(served_with(live), {"ladder": ("popular",)}, store=store)
    for number, query in enumerate(["spam", "ham"]):
        here.post("/feedback", json={"request_id": f"r{number}", "query": query})
    wait_until(lambda: len(live))
    assert live.complete("", 5) == ["ham"] and store.count() == 2


def test_other_servers_events_are_polled(client, store, path):
    live = LiveCounts(AsOf([], AT_ONCE), store)
    client(served_with(live), {"ladder": ("popular",)}, store=store)
    other = FeedbackStore(path)
    put(other, event(1, "lamp red"))
    other.close()
    wait_until(lambda: live.complete("lamp", 5))
