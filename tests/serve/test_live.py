"""Accepted feedback changes the counts, equally on every server and after a crash."""

import dataclasses
import pathlib
import sqlite3
import time

import numpy as np
import pytest

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import read_events, walk
from onesug_jax.logs.schema import Level
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.live import LiveCounts
from tests.serve.asking import until
from tests.serve.item_shop import CONFIG, make_shop, open_shop
from tests.serve.server_process import TRUST_ALL

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = int(1000 * time.time())
AT_ONCE = AsOfConfig(freshness_ms=0, conversion_delay_ms=0, new_share=0)
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
    mask = items.candidates > 0
    texts = [live.text(int(number) - 1) for number in items.candidates[mask]]
    return dict(zip(texts, items.candidate_counts[mask].tolist(), strict=True))


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
    assert [live.searched(text) for text in ("lantern", "unseen")] == [pytest.approx(2), 0]


def test_servers_on_one_store_agree_and_so_does_one_that_starts_later(store, path, opened):
    other_store = FeedbackStore(path)
    try:
        first, second = opened(), opened(at=other_store)
        for number in range(40):
            put((store, other_store)[number % 2], event(number, f"la{number % 5}"))
            if number % 3 == 0:
                put(other_store, event(number, "", ordered_items=["i"]))
            if number % 7 == 0:
                first.poll()
        first.poll(), second.poll()
        found = counts(first)
        assert len(found) == 5
        for other in (counts(second), counts(opened())):
            assert other.keys() == found.keys()
            for query, own in found.items():
                np.testing.assert_allclose(other[query], own, rtol=1e-5)
    finally:
        other_store.close()


def test_untrusted_events_enter_only_their_users_history(store, opened):
    live, late = opened(), opened(since_ms=NOW)
    put(store, event(1))
    put(store, event(2, "lantern", user="bot"), event(3, "lantern", user=""), trusted=False)
    put(store, event(2, "", user="bot", ordered_items=["i"]))
    for one in (live, opened(), opened(since_ms=NOW)):
        one.poll()
        assert one.history("bot")[0] == ("lantern",)
        assert "lantern" not in counts(one)
    assert set(counts(live)) == {"lamp"} and store.count() == 3 and not late.searched("lantern")
    assert store.count(trusted=False) == store.count(trusted=True) + 1 == 2


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
    assert live.searched("lamp") == pytest.approx(2)


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
    assert opened().searched("lamp") == 2


def test_every_server_drops_what_a_forgotten_user_did(store, path, opened, monkeypatch):
    def log():
        state = AsOf(["lamp", "lantern"], AT_ONCE)
        state.observe(NOW - 5000, "", "la", "lamp", visitor="s")  # a snapshot has no histories
        state.settle()
        return state

    other_store = FeedbackStore(path)
    try:
        servers = [opened(log(), at=one, again=log) for one in (store, other_store)]
        put(store, event(1, "lava lamp"), event(2, "lace", user="v"), event(3, "lava lamp"))
        put(store, event(1, "", ordered_items=["i"]), event(4, user="v"))
        put(other_store, event(5, "lantern"), trusted=False)
        for live in servers:
            live.poll()
            assert live.complete("la", 9) == ["lava lamp", "lamp", "lace"]
            assert len(live.history("u")[0]) == 2
        number = servers[1].number("lace")
        monkeypatch.setattr("onesug_jax.serve.live._REST", 0)
        for more in (0, 1):  # also when it happens again
            assert store.forget("u").result(30) == 3 - 2 * more
            put(other_store, event(6 + more, "lace", user="w"))
            late = opened(log())
            for live in servers:
                live.poll()
                assert live.history("u") == ((), ()) and not live.searched("lava lamp")
                assert live.complete("la", 9) == late.complete("la", 9)[:2]
                found, right = counts(live), counts(late)
                assert found.keys() == right.keys() == {"lamp", "lace"}
                for query, own in right.items():
                    np.testing.assert_allclose(found[query], own, rtol=1e-5)
                assert live.number("lace") == number and live.text(number) == "lace"
            put(store, event(9, "lava lamp"))
    finally:
        other_store.close()


def test_counting_continues_if_a_rebuild_fails(store, opened, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.live._REST", 0)
    live = opened(again=lambda: 1 / 0)
    store.forget("v").result(30)
    for number in (1, 2):
        put(store, event(number))
        with pytest.raises(ZeroDivisionError):
            live.poll()
        assert live.searched("lamp") == number


def test_histories_before_the_snapshot_come_from_the_store(store, opened):
    put(store, event(1), event(2, "lantern"), event(3, "lantern", user="other"))
    live = opened(since_ms=NOW)
    assert live.history("u")[0] == ("lantern", "lamp") and live.history("other")[0] == ("lantern",)
    assert live.searched("lamp") == 0, "the snapshot counted them"


def test_a_served_request_equals_the_training_row_made_of_it_later(store, opened, tmp_path):
    """The events are exported as a log, and `walk` makes training rows of it."""
    config = AsOfConfig(candidates=6, similar=2, history=4)
    texts = [f"la{number}" for number in range(6)]
    now = [NOW]
    live = opened(AsOf(texts[:4], config), now_ms=lambda: now[0])
    served = []
    for number in range(40):
        now[0] = NOW + 25_000 * number
        user, prefix = f"u{number % 3}", "la"[: number % 3]
        served += live.requests([(prefix, *live.history(user))])
        more = {"prefix": prefix, "timestamp_ms": now[0], "shown": texts[number % 4 :][:3]}
        one = event(number, texts[number * number % 6], user, **more)
        put(store, one)
        live.poll()
    path = str(tmp_path / "export.parquet")
    store.export(path)
    [(rows, _)] = walk(AsOf(texts[:4], config), read_events([path]))
    for name in ("candidates", "candidate_counts", "history", "history_minutes", "clock"):
        np.testing.assert_array_equal(np.stack([getattr(one, name) for one in served]), rows[name])
    assert rows["candidates"].any() and rows["history"].any()


# ------------------------------------------------------------------ in the service


@pytest.fixture
def trusting_store(path):
    """A store that trusts all feedback."""
    made = FeedbackStore(path, TRUST_ALL)
    yield made
    made.close()


@pytest.fixture
def shop(tmp_path, opened, store):
    """A version with an empty store and the real clock."""
    make_shop(tmp_path, NOW - 600_000)
    made = open_shop(tmp_path, store, None)
    yield made
    made.close()


@pytest.mark.long
def test_the_service_lists_what_is_searched_now(client, trusting_store, shop):
    api = client(shop, {"levels": ("popular",)}, store=trusting_store)
    for number in range(30):
        sent = {"request_id": f"r{number}", "user_id": f"u{number}", "query": "lava lamp"}
        assert api.post("/feedback", json=sent).json()["stored"] == "new"
    body = {"prefix": "la", "why": True, "compare": True}
    until(lambda: shop.live.searched("lava lamp") > 29)
    reply = api.post("/suggest", json=body).json()
    assert reply["level"] == "popular" and reply["suggestions"][0]["text"] == "lava lamp"
    assert reply["most_popular"] == [one["text"] for one in reply["suggestions"]]
    first = reply["why"]["counts"][0]
    assert first["text"] == "lava lamp" and first["alike"] is None
    assert first["counts"]["searches_all"] == pytest.approx(30)
    assert set(first["counts"]) == set(CONFIG.columns)
    (trend,) = reply["why"]["trending"]
    assert trend["text"] == "lava lamp" and trend["now"] > 20 > trend["usual"]


def test_why_names_the_used_history(client, store, shop):
    api = client(shop, {"max_batch": 1, "deadline_ms": 60_000.0}, store=store)
    history = {"history": ["mug red", "no such thing", "lamp red"], "history_minutes": [9, 8, 7]}
    why = api.post("/suggest", json={"prefix": "la", "why": True, **history}).json()["why"]
    used = [{"text": "lamp red", "minutes": 7.0}, {"text": "mug red", "minutes": 9.0}]
    assert why["history"] == used and why["unknown"] == ["no such thing"]
    alike = {one["text"]: one["alike"] for one in why["counts"]}
    assert alike["lamp red"] == {"text": "lamp red", "cosine": 1.0}
    assert why["candidates"] == len(alike) == 6 and why["related"] == []


def test_a_search_changes_the_next_list_before_it_is_polled(client, store, shop):
    api = client(shop, {"max_batch": 1, "deadline_ms": 60_000.0}, store=store)
    shop.live.poll_quietly = lambda: None
    api.post("/feedback", json={"request_id": "r", "user_id": "u", "query": "mug red"})
    reply = api.post("/suggest", json={"prefix": "la", "user_id": "u", "why": True}).json()
    assert [one["text"] for one in reply["why"]["history"]] == ["mug red"]
    assert api.delete("/users/u").json()["deleted"] == 1
    reply = api.post("/suggest", json={"prefix": "la", "user_id": "u", "why": True}).json()
    assert reply["why"]["history"] == []


def test_only_feedback_on_served_lists_changes_lists_of_others(client, store, shop):
    store.config = dataclasses.replace(store.config, visitors_per_source=2)  # a and b
    api = client(shop, {"levels": ("popular",)}, store=store)
    for query in ("spam", "ham"):
        for user in ("a", "b"):
            served = api.post("/suggest", json={"prefix": "h", "user_id": user}).json()
            sent = {"request_id": served["request_id"], "user_id": user, "prefix": "h"}
            if query == "spam":
                sent |= {"prefix": "s"}
            assert api.post("/feedback", json={**sent, "query": query}).json()["stored"] == "new"
    until(lambda: shop.live.searched("ham"))
    assert not shop.live.searched("spam") and store.count() == 4
    assert api.get("/users/a").json()["history"] == ["ham", "spam"]
    assert 'result="untrusted"} 2.0' in api.get("/metrics").text


def test_other_servers_events_and_deletions_are_polled(client, store, path, shop):
    client(shop, {"levels": ("popular",)}, store=store)
    other = FeedbackStore(path)
    put(other, event(1, "lava lamp"), event(2, "lava lamp", "v"))
    until(lambda: shop.live.complete("lava", 5))
    other.forget("v").result(30)
    other.close()
    until(lambda: not shop.live.complete("lava", 5) and shop.live.history("v") == ((), ()))
    assert shop.live.history("u")[0] == ("lava lamp",)
