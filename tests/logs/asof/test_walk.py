"""A training row equals the features that the service computed at that moment."""

import itertools
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import read_events, skip, walk
from onesug_jax.logs.schema import Level, visitor_of
from tests.log_rows import log_row, write_log

START = 1_700_000_000_000
WORDS = sorted(["lamp", "lampshade", "lace", "table", "table cloth", "tablet", "toy"])
ARRAYS = ("candidates", "candidate_counts", "history", "history_minutes", "clock")


def row(number, time, user, prefix, query, clicked=(), ordered=()):
    items = {"clicked_items": clicked, "ordered_items": ordered}
    return log_row(number, query, timestamp_ms=time, user_id=user, prefix=prefix, **items)


@pytest.mark.parametrize("min_users", [1, 2])
def test_rows_equal_the_served_requests_of_which_they_are_logs(tmp_path, min_users):
    config = AsOfConfig(candidates=4, history=3, similar=1, around=1, min_users=min_users)
    rng = np.random.default_rng(min_users)
    live, served, rows, orders = AsOf(WORDS[:4], config), [], [], []
    time = START
    for number in range(300):
        time += int(rng.integers(1000, 1_200_000))
        for due, query, who in [one for one in orders if one[0] + 900_000 < time]:  # later
            live.convert(due, query, Level.ORDER, before=Level.ITEM_CLICK, visitor=who)
            orders.remove((due, query, who))
        user = "" if rng.random() < 0.2 else f"u{rng.integers(0, 5)}"
        query = WORDS[int(rng.integers(0, 7) * rng.random())]
        prefix = query[: rng.integers(0, 4)]
        if rng.random() < 0.1:
            prefix = "tbale"
        served.append(live.request(prefix, user, time))
        ordered = rng.random() < 0.3
        clicked = ordered or rng.random() < 0.3
        rows.append(row(number, time, user, prefix, query, ["i"] * clicked, ["i"] * ordered))
        level = Level.ITEM_CLICK if clicked else Level.CLICK
        who = visitor_of(user, "", time)
        live.observe(time, user, prefix, query, level, who)
        if ordered:
            orders.append((time, query, who))
    path = write_log(tmp_path / "log.parquet", rows)
    blocks = [rows for rows, _ in walk(AsOf(WORDS[:4], config), read_events([path]), block=64)]
    assert [len(block["row"]) for block in blocks] == [64, 64, 64, 64, 44]
    for name in ARRAYS:
        made = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(made, np.stack([getattr(one, name) for one in served]))
    assert (np.concatenate([block["target_candidate"] for block in blocks]) > 0).sum() > 100


def test_a_row_does_not_see_rows_of_the_same_millisecond(tmp_path):
    rows = [row(n, START, f"u{n}", "l", "lamp") for n in range(2)]
    rows.append(row(2, START + 120_000, "u0", "l", "lamp"))
    events = read_events([write_log(tmp_path / "log.parquet", rows)])
    [(block, _)] = walk(AsOf(WORDS), events)
    assert block["new"].tolist() == [True, True, False]
    assert block["target_candidate"].tolist() == [0, 0, 1]
    assert block["query"].tolist() == [WORDS.index("lamp") + 1] * 3
    np.testing.assert_allclose(block["candidate_counts"][2, 0, 0], np.log(2.0), rtol=1e-6)


def test_files_are_one_log_and_other_rows_only_update_the_state(tmp_path):
    late = write_log(tmp_path / "dev.parquet", [row(1, START + 120_000, "u", "l", "lace")])
    early = write_log(tmp_path / "train.parquet", [row(0, START, "u", "l", "lamp")])
    events = read_events([late, early])
    [(block, _)] = walk(AsOf(WORDS), events, lambda event: event.file == 0)
    assert (block["file"].tolist(), block["row"].tolist()) == ([0], [0])
    assert block["candidates"][0, 0] == WORDS.index("lamp") + 1
    assert block["history"][0, 0] == WORDS.index("lamp") + 1
    np.testing.assert_allclose(block["history_minutes"][0, 0], 2.0)


def test_the_own_history_of_a_row_replaces_the_observed_one(tmp_path):
    rows = [row(n, START + n * 120_000, "u", "l", WORDS[n]) for n in range(3)]
    rows[2] |= {"history": [WORDS[0], WORDS[1], WORDS[0]], "history_minutes": [9.0, 8.0, 7.0]}
    own = ("history", pa.list_(pa.string())), ("history_minutes", pa.list_(pa.float64()))
    path = write_log(tmp_path / "log.parquet", rows, *own)
    [(block, _)] = walk(AsOf(WORDS), read_events([path]))
    assert block["history"][2, :3].tolist() == [1, 2, 0]
    assert block["history_minutes"][2, :2].tolist() == [7.0, 8.0]


def test_the_clock_is_hour_and_weekday_of_the_request(tmp_path):
    monday = 1_704_067_200_000  # 2024-01-01, 0:00 UTC
    rows = [row(0, monday, "u", "l", "lamp"), row(1, monday + 31 * 3_600_000, "u", "l", "lamp")]
    events = read_events([write_log(tmp_path / "log.parquet", rows)])
    [(block, _)] = walk(AsOf(WORDS), events)
    assert block["clock"].tolist() == [[0, 0], [7, 1]]


def test_an_unreadable_log_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet"):
        read_events([str(tmp_path / "none.parquet")])
    pq.write_table(pa.table({"query": ["a"]}), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match="request_id"):
        read_events([str(tmp_path / "bare.parquet")])


def test_an_unsorted_file_is_an_error_that_names_the_row(tmp_path):
    rows = [row(0, START, "u", "l", "lamp"), row(1, START - 1, "u", "l", "lamp")]
    with pytest.raises(UserError, match="row 1 is of an earlier time"):
        list(read_events([write_log(tmp_path / "log.parquet", rows)]))


@pytest.mark.parametrize("cut", [1, 137, 299])
def test_a_pickled_state_continues_with_the_same_results(tmp_path, cut):
    """Rows of two files, read from the middle on, equal those of one walk over all rows."""
    config = AsOfConfig(candidates=4, history=3, similar=1, min_users=2, most_users=3)
    rng = np.random.default_rng(0)
    rows, time = [], START
    for number in range(300):
        time += int(rng.integers(0, 1_200_000))
        query = [*WORDS, "ta new"][int(rng.integers(0, 8) * rng.random())]
        prefix = query[: rng.integers(0, 4)] if rng.random() < 0.9 else "tbale"
        items = ["i"] * (rng.random() < 0.3)
        rows.append(row(number, time, f"u{rng.integers(0, 5)}", prefix, query, items, items))
    files = [write_log(tmp_path / f"{n}.parquet", rows[n::2]) for n in range(2)]

    def wanted(event):
        return event.row % 3 > 0

    expected = list(walk(AsOf(WORDS[:4], config), read_events(files), wanted, block=1))
    state, events, first = AsOf(WORDS[:4], config), read_events(files), [0, 0]
    before = list(itertools.islice(events, cut))
    for event in before:
        first[event.file] = event.row + 1
    skip(state, before, wanted)
    again = pickle.loads(pickle.dumps(state))
    rest = list(walk(again, read_events(files, first=first), wanted, block=1))
    assert 0 < len(rest) <= len(expected)
    for (one, (event,)), (other, (same,)) in zip(expected[-len(rest) :], rest, strict=True):
        assert event == same
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert len(again) > 4  # a query began to exist
