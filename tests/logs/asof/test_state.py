"""The as-of state against counts from scratch, and each rule of visibility."""

import collections
import gc
import itertools
import pickle
import weakref

import numpy as np
import pytest

from onesug_jax.logs.asof.config import DAY_MS, AsOfConfig, duration_ms
from onesug_jax.logs.asof.nearby import Nearby
from onesug_jax.logs.asof.snapshot import load, save
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.schema import Level
from tests.logs.asof.searches import START, WORDS, random_log


def first_of_a_day(log, config):
    """The rows that count: the first of each visitor, query and day."""
    seen = collections.Counter()
    for row in log:
        key = row[1], row[3], row[0] // DAY_MS
        seen[key] += 1
        if seen[key] <= config.max_repeats:
            yield row


def from_scratch(log, prefix, user, time, config, frozen=np.inf, old=WORDS):
    """The candidates, text -> counts, and the history, from all rows of the log. A query is new if
    it is not in `old` or began to exist late.
    """
    moment = min(time - config.freshness_ms, frozen)
    visible = [row for row in first_of_a_day(log, config) if row[0] < moment]
    until = min(time - max(config.conversion_delay_ms, config.freshness_ms), frozen)
    converted = [row for row in log if row[0] < until]
    visitors, exist = {}, {}
    for at, who, _, query, *_ in visible:
        visitors.setdefault(query, set()).add(who)
        if len(visitors[query]) >= config.min_users:
            exist.setdefault(query, at)
    if config.new_from_ms:
        old = {query for query in old if exist.get(query, np.inf) < config.new_from_ms}

    def decayed(rows, half_life):
        return sum(
            1.0 if half_life is None else 2.0 ** (-(moment - row[0]) / (half_life * DAY_MS))
            for row in rows
        )

    lists = [row for row in visible if row[2] == prefix and row[5]]
    last = lists[-1][5] if lists else ()
    ago = (moment - lists[-1][0]) / DAY_MS if lists else 0
    counts = {}
    for query in exist:
        place = 1 / (1 + last.index(query)) if query in last else 0.0
        rows = [row for row in visible if row[3] == query]
        pairs = [row for row in rows if row[2] == prefix]
        ends = [row for row in converted if row[3] == query]
        counts[query] = (
            *(decayed(rows, h) for h in config.half_lives_days),
            len([*first_of_a_day([row for row in ends if row[4] == Level.ORDER], config)]),
            len([*first_of_a_day([row for row in ends if row[4] >= Level.ITEM_CLICK], config)]),
            place,
            place * 0.5**ago,
            *(decayed(pairs, h) for h in config.pair_half_lives_days),
        )
    own = config.history_freshness_ms
    past = [row for row in log if row[1] == user]
    past = [row for row in past if row[0] < (moment if own is None else time - own)]
    history = {}
    for row in past:
        history.pop(row[3], None)
        history[row[3]] = (time - row[0]) / 60_000
    newest = list(reversed(history.items()))[: config.history]
    newest = [(q, age) for q, age in newest if q in exist]

    typed = config.new_share * decayed([row for row in visible if row[2] == prefix], 3.0)
    recent = config.half_lives_days.index(3.0)
    ranked = sorted(
        (q for q in exist if q.startswith(prefix) and (q in old or counts[q][recent] >= typed)),
        key=lambda q: -sum(w * c for w, c in zip(config.weights, counts[q][:5], strict=True)),
    )
    ranked = ranked[: config.candidates]
    mine = [q for q, _ in newest if q.startswith(prefix)]
    mine = mine[: min(config.similar, config.candidates // 4)]
    turns = [q for pair in itertools.zip_longest(ranked, mine) for q in pair if q is not None]
    return list(dict.fromkeys(turns))[: config.candidates], counts, newest


@pytest.mark.parametrize("min_users", [1, 3])
@pytest.mark.parametrize("freshness", ["1m", "6h"])
@pytest.mark.parametrize("history_freshness, new_from", [(0, None), (None, START + DAY_MS)])
def test_requests_equal_a_count_from_scratch(min_users, freshness, history_freshness, new_from):
    config = AsOfConfig(
        candidates=8,
        similar=2,
        few=0,
        history=3,
        min_users=min_users,
        freshness_ms=duration_ms(freshness),
        history_freshness_ms=history_freshness,
        new_from_ms=new_from,
    )
    log = random_log(min_users)
    first = WORDS[::3]
    state = AsOf(first, config)  # the others get numbers as they appear
    seen = 0
    for time, user, prefix, query, level, shown in log:
        items = state.request(prefix, user, time)
        candidates, counts, history = from_scratch(log, prefix, user, time, config, old=first)
        at = items.candidates[items.candidates > 0] - 1
        assert [state.text(n) for n in at] == candidates
        expected = [np.log(np.maximum(counts[q], 1e-12)) for q in candidates]
        if candidates:
            np.testing.assert_allclose(
                items.candidate_counts[: len(at)], expected, rtol=1e-4, atol=1e-6
            )
        past = items.history[items.history > 0] - 1
        assert [state.text(n) for n in past] == [q for q, _ in history]
        ages = [age for _, age in history]
        np.testing.assert_allclose(items.history_minutes[: len(past)], ages, rtol=1e-6)
        seen += len(at)
        state.observe(time, user, prefix, query, level, shown=shown)
    assert seen > 100


def test_a_new_query_completes_a_prefix_for_others_once_it_has_its_share(tmp_path):
    """The share is a quarter of the searches after the prefix, also in a saved state."""
    state = AsOf(["lamp", "lantern"], AsOfConfig(freshness_ms=0))

    def listed(prefix, user=""):
        candidates = state.request(prefix, user, START + 600_000).candidates
        return "lava" in [state.text(n - 1) for n in candidates if n]

    for number in range(6):
        state.observe(START, f"u{number}", "la", "lamp")
    state.observe(START, "v", "la", "lava")
    assert listed("lav") and not listed("la")
    assert listed("la", "v"), "its own user sees it"
    save(state, str(tmp_path), rare=False)
    state = load(str(tmp_path))
    assert listed("lav") and not listed("la")
    state.observe(START + 600_000, "w", "", "lava")
    state.settle()
    assert listed("la"), "two of seven"


def test_a_batch_of_requests_equals_single_requests():
    state = AsOf(WORDS, AsOfConfig(freshness_ms=0, candidates=8, history=3))
    for time, user, prefix, query, level, shown in random_log(5):
        state.observe(time, user, prefix, query, level, shown=shown)
    inputs = [("a", ["b", "zz", "ab"], [1.0, 2.0, 3.0]), ("xyz", [], []), ("", ["c"], [])]
    for (prefix, *history), items in zip(inputs, state.requests(inputs, state.end_ms), strict=True):
        single = state.request(prefix, "", state.end_ms, history)
        for name, array in vars(single).items():
            np.testing.assert_array_equal(getattr(items, name), array)


def test_wide_prefixes_retain_the_queries_with_the_highest_counts():
    log = random_log(5, rows=400)
    narrow, full = (
        AsOf(WORDS, AsOfConfig(candidates=4, breadth=breadth, similar=0)) for breadth in (10, 4096)
    )
    for time, user, prefix, query, level, shown in log:
        items = [state.request("", user, time).candidates for state in (narrow, full)]
        np.testing.assert_array_equal(*items)
        for state in (narrow, full):
            state.observe(time, user, prefix, query, level, shown=shown)


def test_a_frozen_state_retains_its_counts_and_histories_continue():
    log = random_log(3)
    config = AsOfConfig(few=0)
    state, cut = AsOf(WORDS, config), log[80][0]
    for time, user, prefix, query, level, shown in log[:80]:
        state.observe(time, user, prefix, query, level, shown=shown)
    state.freeze(cut)
    for time, user, prefix, query, level, shown in log[80:]:
        items = state.request(prefix, user, time)
        candidates, counts, history = from_scratch(log, prefix, user, time, config, cut)
        at = items.candidates[items.candidates > 0] - 1
        assert [state.text(n) for n in at] == candidates
        past = items.history[items.history > 0] - 1
        assert [state.text(n) for n in past] == [q for q, _ in history]
        state.observe(time, user, prefix, query, level, shown=shown)
    assert state.moment == cut


def test_a_late_order_counts_as_one_in_the_row():
    with_row, later = AsOf(["shoe"]), AsOf(["shoe"])
    with_row.observe(START, "u", "s", "shoe", Level.ORDER)
    later.observe(START, "u", "s", "shoe")
    later.convert(START, "shoe", Level.ITEM_CLICK, visitor="uu")
    later.convert(START, "shoe", Level.ORDER, before=Level.ITEM_CLICK, visitor="uu")
    for after in (600_000, 3_600_001):
        items = [s.request("s", "", START + after).candidate_counts for s in (with_row, later)]
        np.testing.assert_array_equal(*items)
    assert with_row.conversions[0].tolist() == [1, 1]


def test_mistyped_prefixes_have_completions_of_their_corrections():
    state = AsOf(["lamp", "lace", "table"])
    for n, query in enumerate(("lamp", "lace", "lace", "table")):
        state.observe(START + n, "u", query[0], query)
    at = state.request("tbale", "", START + DAY_MS).candidates
    assert [state.text(n - 1) for n in at if n] == ["table"]


def test_queries_near_the_history_take_turns_with_the_most_counted_if_completions_are_cut():
    texts = [f"a{number:02}" for number in range(21)]  # nobody searches the last one
    near = np.full((21, 4), -1)
    near[19] = 20, 3, 18, 17
    found = {}
    for most in (12, 32):
        state = AsOf(texts, AsOfConfig(candidates=most), nearby=Nearby(near))
        for number, text in enumerate(texts[:19]):
            for time in range(40 - 2 * number):
                state.observe(START + time, f"u{time}", "a", text)
        state.observe(START, "u", "a", "a19")
        candidates = state.request("a", "u", START + DAY_MS).candidates
        found[most] = [state.text(number - 1) for number in candidates if number]
    assert found[12][:8] == ["a00", "a19", "a01", "a03", "a02", "a18", "a04", "a05"]
    assert len(found[12]) == 12 and "a17" not in found[12], "a quarter is three"
    assert sorted(found[32]) == texts[:-1]


def test_queries_around_the_prefix_become_candidates_if_they_exist():
    config = AsOfConfig(few=0, around=8)
    state = AsOf(["lamp", "light", "moon"], config, nearby=Nearby(around=lambda prefix: [2, 1]))
    state.observe(START, "u", "l", "lamp")
    state.observe(START, "u", "l", "light")
    assert state.request("lam", "", START + DAY_MS).candidates[:3].tolist() == [1, 2, 0]


def test_queries_beyond_the_spare_numbers_are_refused_and_counted():
    state = AsOf([], spare=1)
    for query in ("one", "two", "one"):
        state.observe(START, "u", "", query)
    assert state.request("", "", START + DAY_MS).candidates[:2].tolist() == [1, 0]
    assert state.refused == 1 and len(state) == 1


@pytest.mark.parametrize("pickled", [False, True])
def test_a_state_leaves_the_memory_without_garbage_collection(pickled):
    """Workers and services exclude their large objects from it (`serve.heap`)."""
    state = AsOf([f"q{n:02}" for n in range(50)], AsOfConfig(breadth=5))
    for n in range(60):
        state.observe(START + n * 1000, "ann", "q", f"q{n:02}")
    state.request("q", "ann", START + DAY_MS)
    if pickled:
        state = pickle.loads(pickle.dumps(state))
    parts = [weakref.ref(part) for part in (state, state.completions, state.searches)]
    gc.disable()
    try:
        del state
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def test_a_forgotten_user_has_no_history():
    state = AsOf(["lamp", "lace"])
    state.observe(START, "u", "l", "lamp")
    state.at(START + 1)
    state.observe(START + 2, "u", "l", "lace")
    state.forget("u")
    assert state.request("l", "u", START + DAY_MS).history.tolist() == [0] * 40


def test_a_history_of_length_0_is_one_empty_place():
    state = AsOf(["lamp", "lace"], AsOfConfig(history=0))
    state.observe(START, "u", "l", "lamp")
    items = state.request("l", "u", START + DAY_MS)
    assert items.history.tolist() == [0] and items.history_minutes.tolist() == [0.0]
