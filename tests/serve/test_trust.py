"""Forged feedback: verification of ids, and limits of one source."""

import os
import stat

import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.times import DAY_MS
from onesug_jax.serve.feedback import Event, FeedbackConfig, FeedbackStore
from onesug_jax.serve.trust import SECRET, RateLimit, RequestIds, Trust, VisitorLimit, secret_of

NOW = 1_700_000_000.0
SECRETS = bytes(range(32)), bytes(32)


@pytest.fixture
def clock():
    """A clock that tests move, in seconds since 1970."""
    return [NOW]


@pytest.fixture
def store(tmp_path):
    made = FeedbackStore(str(tmp_path / "feedback" / "events.sqlite"))
    yield made
    made.close()


def event(number=0, user="u", query="spam", **more):
    more = {"prefix": "s", "timestamp_ms": int(1000 * NOW), **more}
    return Event(f"r{number}", user_id=user, query=query, **more)


# ------------------------------------------------------------------ ids


def test_an_id_is_valid_for_its_prefix_user_and_day_only(clock):
    ids = RequestIds(SECRETS[0], hours=24.0, now=lambda: clock[0])
    made = ids.make("la ", "é")
    assert len(made) <= 64 and made.isalnum() and made != ids.make("la ", "é")
    assert ids.verify(made, "la ", "é")
    for prefix, user in [("la", "é"), ("la ", ""), ("", "la é"), ("la é", "")]:
        assert not ids.verify(made, prefix, user)
    clock[0] += 24 * 3600
    assert ids.verify(made, "la ", "é")
    clock[0] += 1
    assert not ids.verify(made, "la ", "é")


def test_a_changed_id_is_invalid():
    ids = RequestIds(SECRETS[0], hours=24.0, now=lambda: NOW)
    made = ids.make("s", "u")
    for place in range(len(made)):
        touched = made[:place] + ("0" if made[place] != "0" else "1") + made[place + 1 :]
        assert not ids.verify(touched, "s", "u"), place
    for other in ("", "r1", made[:-2], made + "00", made.upper(), f" {made}", "é" * 58):
        assert not ids.verify(other, "s", "u"), other
    assert not RequestIds(SECRETS[1], 24.0, now=lambda: NOW).verify(made, "s", "u")


def test_servers_on_one_store_share_a_secret_that_only_the_owner_reads(store, tmp_path):
    folder = os.path.dirname(store.path)
    one, other = (Trust(store, keyed=False) for _ in range(2))
    made = one.request_id("s", "u", "203.0.113.5")
    assert other.trusts(_with(made), "203.0.113.5")
    mode = os.stat(os.path.join(folder, SECRET)).st_mode
    assert stat.S_IMODE(mode) == 0o600 and os.listdir(folder).count(SECRET) == 1
    assert not [name for name in os.listdir(folder) if name.startswith(f"{SECRET}.")]
    (tmp_path / SECRET).write_bytes(b"short")
    with pytest.raises(UserError, match="found 5"):
        secret_of(str(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        secret_of(str(tmp_path / "nowhere"))


def _with(request_id, **more):
    return Event(request_id, **{"user_id": "u", "prefix": "s", "query": "spam", **more})


# ------------------------------------------------------------------ sources


def test_a_few_visitors_of_a_source_count_toward_a_query_each_day():
    visitors = VisitorLimit(2)
    at = int(1000 * NOW)

    def counts(source, user, query="spam", day=0, number=0):
        return visitors.counts(source, event(number, user, query, timestamp_ms=at + day * DAY_MS))

    assert [counts("x", user) for user in "ababcd"] == [True, True, True, True, False, False]
    assert not counts("x", "a", number=1), "another request of one that has counted"
    assert counts("y", "c"), "another source"
    assert counts("x", "c", "ham"), "another query"
    assert counts("x", "c", day=1), "another day"
    assert all(VisitorLimit(None).counts("x", event(0, f"u{n}")) for n in range(9))
    small = VisitorLimit(1, capacity=2)
    for query in "abc":
        assert small.counts("x", event(0, "u", query))
    assert small.counts("x", event(0, "v", "a")), "the oldest was dropped"
    assert not small.counts("x", event(0, "v", "c"))


def test_anonymous_visitors_of_a_source_are_one():
    visitors = VisitorLimit(1)
    assert [visitors.counts("x", event(n, "")) for n in range(3)] == [True, False, False]
    assert not visitors.counts("x", event(0, "named"))


def test_a_source_has_a_limit_a_minute_and_gets_retry_after(clock):
    limit = RateLimit(2, now=lambda: clock[0], capacity=2)
    assert [limit.wait("x") for _ in range(2)] == [0, 0]
    assert limit.wait("x") == pytest.approx(30)
    assert limit.wait("y") == 0
    clock[0] += 20
    assert limit.wait("x") == pytest.approx(10), "a refused event takes no token"
    clock[0] += 11
    assert limit.wait("x") == 0 and limit.wait("x") > 0
    clock[0] += 1e6
    assert [limit.wait("x") > 0 for _ in range(3)] == [False, False, True], "the bucket is full"
    for source in "yzx":
        assert limit.wait(source) == 0, "the least recently seen was dropped"
    assert RateLimit(None).wait("x") == 0


def test_the_holder_of_the_key_is_no_source(store, clock):
    shop, everybody = (Trust(store, keyed, now=lambda: clock[0]) for keyed in (True, False))
    assert shop.source("203.0.113.5") is None and everybody.source(None) == ""
    for trust, most in ((shop, 9), (everybody, 1)):
        source = trust.source("203.0.113.5")
        trusted = [
            trust.trusts(_with(trust.request_id("s", f"u{n}", source), user_id=f"u{n}"), source)
            for n in range(9)
        ]
        assert sum(trusted) == most
    assert not shop.trusts(_with("an-id-of-its-own"), None)


def test_a_source_that_requests_too_many_lists_gets_unsigned_ids(tmp_path, clock):
    store = FeedbackStore(str(tmp_path / "events.sqlite"), FeedbackConfig(ids_per_minute=2))
    trust = Trust(store, keyed=False, now=lambda: clock[0])
    made = [trust.request_id("s", "u", "x") for _ in range(3)]
    sent = [_with(one, query=f"query {number}") for number, one in enumerate(made)]
    assert [trust.trusts(one, "x") for one in sent] == [True, True, False]
    assert len(set(made)) == 3
    store.close()


def test_a_shop_may_trust_ids_of_its_own(tmp_path):
    store = FeedbackStore(str(tmp_path / "events.sqlite"), FeedbackConfig(trust="all"))
    assert Trust(store, keyed=True).trusts(event(), None)
    store.close()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"trust": "some"}, 'expected "served" or "all"'),
        ({"id_hours": 0.0}, "id_hours"),
        ({"visitors_per_source": 0}, "visitors_per_source"),
        ({"feedback_per_minute": 0}, "feedback_per_minute"),
        ({"ids_per_minute": -1}, "ids_per_minute"),
    ],
)
def test_invalid_settings_are_named(setting, message):
    with pytest.raises(UserError, match=message):
        FeedbackConfig(**setting)


# ------------------------------------------------------------------ over HTTP


def test_too_much_feedback_of_one_address_is_refused(client, tmp_path):
    store = FeedbackStore(str(tmp_path / "events.sqlite"), FeedbackConfig(feedback_per_minute=2))
    api = client(store=store)
    sent = [{"request_id": f"r{n}", "user_id": "u", "query": "a"} for n in range(3)]
    replies = [api.post("/feedback", json=one) for one in sent]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert int(replies[2].headers["retry-after"]) >= 1
    assert replies[2].json()["errors"][0]["field"] == "source"
    assert store.count() == 2 and api.post("/suggest", json={}).status_code == 200


def test_with_a_key_nothing_is_limited_and_served_ids_count(client, tmp_path, monkeypatch):
    monkeypatch.setenv("ONESUG_API_KEY", "k")
    config = FeedbackConfig(feedback_per_minute=1, visitors_per_source=1)
    store = FeedbackStore(str(tmp_path / "events.sqlite"), config)
    api = client(store=store)
    api.headers["x-api-key"] = "k"
    for user in "abc":
        served = api.post("/suggest", json={"prefix": "s", "user_id": user}).json()
        sent = {"request_id": served["request_id"], "user_id": user, "prefix": "S", "query": "x"}
        assert api.post("/feedback", json=sent).json()["stored"] == "new"
    assert store.count(trusted=True) == 3


def test_an_order_that_comes_late_is_as_trusted_as_its_search(client):
    api = client()
    served = api.post("/suggest", json={"prefix": "s", "user_id": "u"}).json()["request_id"]
    for request_id in (served, "mine"):
        first = {"request_id": request_id, "user_id": "u", "prefix": "s", "query": "x"}
        later = {"request_id": request_id, "user_id": "u", "ordered_items": ["i"]}
        assert api.post("/feedback", json=first).json()["stored"] == "new"
        assert api.post("/feedback", json=later).json()["stored"] == "more"
    connection = api.store.reader()
    found = connection.execute("SELECT request_id, before, level FROM journal ORDER BY seq")
    assert [tuple(row) for row in found] == [(served, 0, 3), (served, 3, 5), ("mine", 0, 0)]
    connection.close()
