"""Decayed counts against sums from scratch; pairs in bounded memory."""

import numpy as np
import pytest

from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.logs.asof.counts import DecayedCounts
from onesug_jax.logs.asof.pairs import PairCounts

HALF_LIVES = (None, 14.0, 0.1)


def at(pairs, prefix, queries, time_ms):
    """The counts of one prefix, requested with another."""
    lists = [("zzz", np.array([0])), (prefix, np.array(queries))]
    return pairs.at(lists, time_ms)[1:]


def from_scratch(times, now):
    ages = now - np.array(times, float)
    return [
        sum(1.0 if h is None else 2.0 ** (-age / (h * DAY_MS)) for age in ages) for h in HALF_LIVES
    ]


@pytest.mark.parametrize("start", [0, 1_600_000_000_000])  # some logs count from 1970
def test_counts_equal_their_definition_over_many_years(start):
    rng = np.random.default_rng(0)
    counts = DecayedCounts(HALF_LIVES, rows=2)
    times = np.sort(rng.integers(start, start + 200_000_000_000, 400))
    rows = rng.integers(0, 2, 400)
    for n, (time, row) in enumerate(zip(times.tolist(), rows, strict=True)):
        counts.add(row, time)
        if n % 50 == 0:
            for row in range(2):
                seen = times[: n + 1][rows[: n + 1] == row]
                np.testing.assert_allclose(
                    counts.at([row], time + 5000)[0], from_scratch(seen, time + 5000), rtol=1e-9
                )


def test_the_order_of_events_does_not_matter():
    early, late = DecayedCounts(HALF_LIVES), DecayedCounts(HALF_LIVES)
    times = [100 * DAY_MS, 101 * DAY_MS, 140 * DAY_MS]
    for time in times:
        early.add(0, time)
    for time in (times[0], times[2], times[1]):
        late.add(0, time)
    np.testing.assert_allclose(early.at([0], times[2]), late.at([0], times[2]), rtol=1e-12)


def test_reserved_rows_begin_at_zero():
    counts = DecayedCounts(HALF_LIVES, rows=1)
    counts.add(0, DAY_MS)
    counts.reserve(100)
    assert counts.at(np.array([99]), DAY_MS).tolist() == [[0, 0, 0]]
    assert counts.at(np.array([0]), DAY_MS).tolist() == [[1, 1, 1]]


def test_pairs_count_queries_after_a_prefix():
    pairs = PairCounts((None, 1.0), most=10)
    pairs.add("a", 3, 0)
    pairs.add("a", 3, DAY_MS)
    pairs.add("b", 3, DAY_MS)
    assert at(pairs, "a", [2, 3], DAY_MS).tolist() == [[0, 0], [2, 1.5]]
    assert at(pairs, "c", [3], DAY_MS).tolist() == [[0, 0]]


def test_the_pairs_with_the_lowest_counts_are_removed():
    pairs = PairCounts((None, 1.0), most=8)
    for query in range(8):
        for _ in range(query + 1):
            pairs.add(f"p{query}", query, 0)
    pairs.add("new", 99, 1)
    assert len(pairs) <= 8 and pairs.left == 3
    assert at(pairs, "p0", [0], 1).sum() == 0
    assert at(pairs, "p7", [7], 1)[0, 0] == 8
    assert at(pairs, "new", [99], 1)[0, 0] == 1


@pytest.mark.parametrize("most", [1, 2])
def test_the_smallest_tables_hold_the_newest_pair(most):
    pairs = PairCounts((None,), most=most)
    for query in range(5):
        pairs.add("p", query, query)
        assert len(pairs) <= most and at(pairs, "p", [query], query)[0, 0] == 1


def test_pairs_are_restored_from_their_arrays():
    pairs, again = PairCounts((None, 1.0), 10), PairCounts((None, 1.0), 10)
    for n in range(6):
        pairs.add("ab"[n % 2], n % 3, n * DAY_MS)
    again.from_arrays(*pairs.to_arrays())
    for prefix in "ab":
        np.testing.assert_array_equal(
            at(pairs, prefix, [0, 1, 2], 9 * DAY_MS), at(again, prefix, [0, 1, 2], 9 * DAY_MS)
        )
