"""Preference lists: their members, the shares of levels, and reproducible draws."""

import numpy as np
import pytest

from onesug_jax.align import preferences
from onesug_jax.align.preferences import Behaviour, ListConfig, Lists, read_behaviour
from onesug_jax.errors import UserError
from onesug_jax.logs.schema import Level

QUERIES = [f"q{n}" for n in range(40)]
NUMBER = {query: number for number, query in enumerate(QUERIES)}
POOLS = {"q": list(range(12)), "q1": [10, 11, 12]}


def row(query, shown=(), prefix="q", clicked=(), ordered=(), at=0):
    return {
        "prefix": prefix,
        "query": query,
        "shown": list(shown),
        "clicked_items": list(clicked),
        "ordered_items": list(ordered),
        "timestamp_ms": at,
    }


def behaviour_of(*rows, queries=40, pools=POOLS):
    block = {name: [r[name] for r in rows] for name in preferences.COLUMNS}
    return read_behaviour(
        [block],
        lambda q: NUMBER.get(q, -1),
        queries,
        pools,
        lambda prefix, k: range(min(k, queries)),
    )


def random_behaviour(count=60):
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(count):
        shown = [QUERIES[n] for n in rng.choice(9, 5, replace=False)]
        own = QUERIES[rng.integers(0, 14)]
        kind = int(rng.integers(0, 3))
        rows.append(row(own, shown, clicked=["i"][kind < 1 :], ordered=["o"][kind < 2 :]))
    return behaviour_of(*rows)


def test_rows_become_numbers_levels_and_other_shown_queries():
    b = behaviour_of(
        row("q3", ["q1", "q3", "unheard of", "q2"], ordered=["x"]),
        row("unheard of", ["q5"], prefix="zz"),
        row("q4", clicked=["x"], prefix="q1"),
    )
    assert b.query.tolist() == [3, -1, 4]
    assert b.level.tolist() == [Level.ORDER, Level.CLICK, Level.ITEM_CLICK]
    assert b.pool.tolist() == [0, -1, 1]
    assert b.shown.tolist() == [1, 2, 5]
    assert b.shown_offsets.tolist() == [0, 2, 3, 3]
    assert b.shown_by == "log"


def test_counts_are_those_of_a_plain_loop():
    b = random_behaviour()
    slow = np.zeros((6, b.queries), np.int64)
    for r in range(len(b)):
        own = b.query[r]
        shown = set(b.shown[b.shown_offsets[r] : b.shown_offsets[r + 1]].tolist())
        slow[b.level[r], own] += 1
        slow[Level.RAND, own] += 1
        for query in shown:
            slow[Level.SHOW, query] += 1
        for query in b.pools[b.pool_offsets[b.pool[r]] : b.pool_offsets[b.pool[r] + 1]].tolist():
            slow[Level.NOT_SHOW, query] += query not in shown and query != own
    np.testing.assert_array_equal(b.counts(), slow)


def test_most_popular_queries_stand_in_for_missing_shown_lists():
    b = behaviour_of(row("q3"), row("q20"))
    assert b.shown_by == "most_popular"
    assert b.shown[: b.shown_offsets[1]].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    printed = preferences.format_summary(preferences.summary(b, b.counts()))
    assert "no shown lists" in printed and "10 most popular" in printed


def test_the_queries_of_a_list_are_distinct():
    b = random_behaviour()
    lists = Lists(b, ListConfig(negatives=8), seed=4)
    for step in range(20):
        drawn = lists(step, 16)
        for numbers in drawn.numbers:
            real = numbers[numbers >= 0]
            assert len(set(real.tolist())) == len(real)
        assert drawn.mask.all()  # forty queries are enough for eight negatives


def test_negatives_have_the_level_of_their_label():
    b = random_behaviour()
    lists, seen = Lists(b, ListConfig(), seed=0), set()
    for step in range(30):
        drawn = lists(step, 16)
        for r, numbers, levels in zip(drawn.rows, drawn.numbers, drawn.levels, strict=True):
            shown = b.shown[b.shown_offsets[r] : b.shown_offsets[r + 1]].tolist()
            pool = b.pools[b.pool_offsets[b.pool[r]] : b.pool_offsets[b.pool[r] + 1]].tolist()
            assert numbers[0] == b.query[r] and levels[0] == b.level[r]
            for number, level in zip(numbers[1:].tolist(), levels[1:].tolist(), strict=True):
                assert (number in shown) == (level == Level.SHOW)
                if level == Level.NOT_SHOW:
                    assert number in pool
                seen.add((int(levels[0]), level))
    assert len(seen) == 9  # all pair types


def test_the_mix_of_levels_is_the_configured_one():
    b = random_behaviour(200)
    drawn = Lists(b, ListConfig(show=0.0, not_show=0.0, rand=1.0), 0)(0, 500)
    assert (drawn.levels[:, 1:] == Level.RAND).all()
    drawn = Lists(b, ListConfig(order=1.0, item_click=0.0, click=0.0), 0)(0, 500)
    assert (drawn.levels[:, 0] == Level.ORDER).all()
    assert Lists(b, ListConfig(show=0.0, not_show=0.0, rand=1.0), 0).mix()["RAND"][1] > 0.9
    shares = Lists(b, ListConfig(negatives=1), 0)(0, 20_000).levels[:, 1]
    assert np.mean(shares == Level.SHOW) == pytest.approx(0.5, abs=0.02)
    plain = Lists(b, ListConfig(), 0)(0, 20_000).levels[:, 0]
    assert np.mean(plain == Level.ORDER) == pytest.approx(np.mean(b.level == Level.ORDER), abs=0.02)


def test_a_draw_is_a_function_of_seed_and_step():
    b = random_behaviour()
    once, again = (Lists(b, ListConfig(), seed=7) for _ in range(2))
    for step in (5, 0, 5):
        np.testing.assert_array_equal(once(step, 8).numbers, again(step, 8).numbers)
    assert (once(0, 8).numbers != once(1, 8).numbers).any()
    assert (Lists(b, ListConfig(), seed=8)(0, 8).numbers != once(0, 8).numbers).any()


def test_a_position_without_a_query_goes_to_the_next_level():
    b = behaviour_of(row("q3", prefix="nothing mined"), row("q5", ["q6"], prefix="nothing mined"))
    drawn = Lists(b, ListConfig(show=1.0, not_show=0.0, rand=1e-9), 0)(0, 64)
    assert drawn.mask.all()
    of_first = drawn.levels[drawn.rows == 0, 1:]
    assert (of_first == Level.RAND).all()
    of_second = drawn.levels[drawn.rows == 1, 1:]
    assert ((of_second == Level.SHOW).sum(axis=1) == 1).all()


def test_a_level_without_a_share_is_never_drawn():
    b = behaviour_of(row("q3", prefix="nothing mined"), row("q5", ["q6"], prefix="nothing mined"))
    lists = Lists(b, ListConfig(show=1.0, not_show=0.0, rand=0.0), 0)
    drawn = lists(0, 64)
    assert (drawn.mask.sum(axis=1) == 1 + drawn.rows).all()  # the positive, and q6 of the second
    assert (drawn.levels[:, 1:][drawn.mask[:, 1:]] == Level.SHOW).all()
    mix = lists.mix()
    assert mix["SHOW"][0] == 1.0 and mix["RAND"] == (0.0, 0.0)
    assert mix["SHOW"][1] + mix["empty"][1] == pytest.approx(1.0)


def test_a_shop_of_two_queries_leaves_positions_empty():
    b = behaviour_of(row("q0"), row("q1"), queries=2, pools={})
    drawn = Lists(b, ListConfig(negatives=3), 0)(0, 8)
    assert (drawn.mask.sum(axis=1) == 2).all()


def test_rows_without_an_indexed_query_are_no_positives():
    b = behaviour_of(row("unheard of"), row("q1", ["q2"]))
    assert (Lists(b, ListConfig(), 0)(0, 32).rows == 1).all()
    with pytest.raises(UserError, match="no row can be the positive"):
        Lists(behaviour_of(row("unheard of")), ListConfig(), 0)
    with pytest.raises(UserError, match="gives these levels no weight"):
        Lists(b, ListConfig(click=0.0), 0)


def test_lists_of_given_rows_do_not_change():
    lists = Lists(random_behaviour(), ListConfig(), 0)
    rows = np.array([3, 1, 3])
    np.testing.assert_array_equal(lists.of(rows).numbers, lists.of(rows).numbers)
    np.testing.assert_array_equal(lists.of(rows).rows, rows)


def test_saved_and_loaded(tmp_path):
    b = random_behaviour()
    b.save(str(tmp_path), "train")
    loaded = Behaviour.load(str(tmp_path), "train")
    np.testing.assert_array_equal(loaded.counts(), b.counts())
    assert (loaded.queries, loaded.shown_by) == (b.queries, b.shown_by)
    with pytest.raises(UserError, match="rewards stage"):
        Behaviour.load(str(tmp_path), "dev")


def test_the_summary_of_a_log_with_one_level_names_its_limits():
    b = behaviour_of(row("q1", ["q2"]), row("q2", ["q1"]), pools={})
    printed = preferences.format_summary(preferences.summary(b, b.counts()))
    assert "every row's level is CLICK" in printed and "no NOT_SHOW pairs" in printed


def test_logs_of_unknown_queries_or_without_negatives_are_reported():
    b = behaviour_of(row("unheard of"))
    printed = preferences.format_summary(preferences.summary(b, b.counts()))
    assert "this log gives no preference list" in printed
    b = behaviour_of(row("q0"), queries=1, pools={})
    printed = preferences.format_summary(preferences.summary(b, b.counts()))
    assert "no SHOW and no NOT_SHOW pairs" in printed and "go to RAND" in printed


def test_positives_come_from_the_last_days():
    day = 86_400_000
    b = behaviour_of(row("q1", ["q2"], at=0), row("q2", ["q1"], at=5 * day), row("q3", at=7 * day))
    assert set(Lists(b, ListConfig(days=3.0), 0)(0, 64).rows.tolist()) == {1, 2}


def test_empty_lists_and_zero_shares_are_refused():
    with pytest.raises(UserError, match="negatives"):
        ListConfig(negatives=0)
    with pytest.raises(UserError, match="shares"):
        ListConfig(show=0.0, not_show=0.0, rand=0.0)
