"""Histories against a reference that compares every pair of rows."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.history import with_history
from onesug_jax.logs.schema import HISTORY
from tests.log_rows import log_row, write_log


def row(number, user, time, query, **more):
    return log_row(number, query, user_id=user, session_id="s", timestamp_ms=time, **more)


def reference(one, everything, n):
    """A slow reference: the earlier queries of the user, newest first, each once."""
    if not one["user_id"]:
        return []
    earlier = [
        other
        for other in everything
        if other["user_id"] == one["user_id"] and other["timestamp_ms"] < one["timestamp_ms"]
    ]
    earlier.sort(key=lambda other: (other["timestamp_ms"], other["request_id"]), reverse=True)
    return list(dict.fromkeys(other["query"] for other in earlier))[:n]


def reference_minutes(one, everything, n):
    """The age in minutes of each query of the history of `one`."""
    mine = [other for other in everything if other["user_id"] == one["user_id"]]
    return [
        min(
            one["timestamp_ms"] - other["timestamp_ms"]
            for other in mine
            if other["query"] == query and other["timestamp_ms"] < one["timestamp_ms"]
        )
        / 60_000
        for query in reference(one, everything, n)
    ]


@pytest.fixture(scope="module")
def random_log(tmp_path_factory):
    """Three files with interleaved times, ties within and across files, anonymous users."""
    draw = random.Random(5)
    rows = [
        row(
            number,
            draw.choice(["u1", "u2", "u3", "O'Neil", ""]),
            draw.randrange(150),
            draw.choice("abcdefghijklmnopqrstuvwxyz") * draw.randint(1, 2),
        )
        for number in draw.sample(range(90_000), 900)
    ]
    folder = tmp_path_factory.mktemp("a [log] *")
    files = {}
    for place, name in enumerate(("train", "dev", "test")):
        part = sorted(rows[place::3], key=lambda one: (one["timestamp_ms"], one["request_id"]))
        files[write_log(folder / f"{name}.parquet", part)] = part
    return files


@pytest.mark.parametrize("n", [0, 1, 3, 10])
def test_history_equals_the_reference_for_every_split(random_log, n):
    everything = [one for part in random_log.values() for one in part]
    for path, part in random_log.items():
        got = with_history(list(random_log), keep=path, history=n).read_all().to_pylist()
        added = ("recent", "recent_minutes")
        assert [{k: v for k, v in one.items() if k not in added} for one in got] == part
        assert [one["recent"] for one in got] == [reference(one, everything, n) for one in part]
        for one, row in zip(part, got, strict=True):
            assert row["recent_minutes"] == pytest.approx(reference_minutes(one, everything, n))


@pytest.mark.long
def test_a_history_continues_across_batches(tmp_path):
    """70,000 rows of one user, more than one batch; repeats must not displace other queries."""
    many = [row(i, "u", i, f"q{i % 4}") for i in range(70_000)]
    path = write_log(tmp_path / "log.parquet", many)
    reader = with_history([path], keep=path)
    batches = list(reader)
    assert len(batches) > 1
    last = batches[-1].slice(batches[-1].num_rows - 1).to_pylist()[0]
    assert last["request_id"] == "r69999"
    assert last["recent"] == ["q2", "q1", "q0", "q3"]
    assert sum(batch.num_rows for batch in batches) == 70_000


def test_a_row_with_its_own_history_uses_that_and_others_the_derived(tmp_path):
    train = write_log(tmp_path / "train.parquet", [row(0, "u", 1, "early"), row(1, "u", 2, "late")])
    own = pa.field(HISTORY, pa.list_(pa.string()))
    rows = [
        row(2, "u", 9, "x", history=["old", "new", "old", "newest"]),
        row(3, "u", 9, "y", history=None),
        row(4, "u", 9, "z", history=[]),
        row(5, "", 9, "z", history=["given"]),
    ]
    test = write_log(tmp_path / "test.parquet", rows, own)
    got = with_history([train, test], keep=test, history=2).read_all()
    assert got["recent"].to_pylist() == [["newest", "old"], ["late", "early"], [], ["given"]]
    assert got[HISTORY].to_pylist()[0] == ["old", "new", "old", "newest"]


def test_errors_name_the_file(tmp_path):
    path = write_log(tmp_path / "log.parquet", [row(0, "u", 1, "a")])
    with pytest.raises(UserError, match="expected one of the log files"):
        with_history([path], keep=str(tmp_path / "other.parquet"))
    with pytest.raises(UserError, match="nothing.parquet"):
        with_history([path, str(tmp_path / "nothing.parquet")], keep=path)
    table = pq.read_table(path).drop_columns(["query"])
    pq.write_table(table, tmp_path / "raw.parquet")
    with pytest.raises(UserError, match="column 'query' is missing"):
        with_history([path, str(tmp_path / "raw.parquet")], keep=path)
    late = write_log(tmp_path / "late.parquet", [row(0, "u", 2, "a"), row(1, "u", 1, "b")])
    with pytest.raises(UserError, match="late.parquet: row 1 is of an earlier time"):
        with_history([late], keep=late).read_all()
