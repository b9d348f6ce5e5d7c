"""Ingest: splits by name and by time, and the times of rows."""

import gzip
import json
import pathlib
import random

import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.ingest import ingest
from tests.log_rows import write_log
from tests.raw_logs import DAY, START, aside, files_in, log, row, rows_of, write_csv, write_jsonl


def test_files_named_after_splits_have_these_splits(tmp_path, out):
    folder = tmp_path / "logs"
    (folder / "test").mkdir(parents=True)
    write_jsonl(folder / "train-00000-of-00002.jsonl", log(100)[:30])
    write_jsonl(folder / "train-00001-of-00002.jsonl", log(100)[60:90])
    write_csv(folder / "validation.csv", log(100)[30:50])
    write_log(folder / "test" / "part-0.parquet", log(100)[50:60])
    report = ingest(str(folder), out, dev_share=0.3, test_share=0.3)
    assert report.splits == {"train": 60, "dev": 20, "test": 10}
    assert [one["request_id"] for one in rows_of(out, "dev")] == [
        f"r{number:04d}" for number in range(30, 50)
    ]


@pytest.mark.parametrize("named", [False, True])
def test_other_logs_are_split_by_time(tmp_path, out, capsys, named):
    """A log without split names, and a train split alone."""
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / ("train.parquet" if named else "log.parquet"), log(100))
    report = ingest(str(folder), out, dev_share=0.2, test_share=0.1)
    assert report.splits == {"train": 70, "dev": 20, "test": 10}
    times = {split: [one["timestamp_ms"] for one in rows_of(out, split)] for split in report.splits}
    assert max(times["train"]) < min(times["dev"]) <= max(times["dev"]) < min(times["test"])
    said = capsys.readouterr().out
    assert "; dev from 2025-06-22 15:06; test from 2025-06-24 15:06" in said
    assert "2025-06-22 15:06 .. 2025-06-24 12:42" in said, "the first and last row of dev"


def parts_of(times, dev, test):
    """A slow reference of the times of each split: one row at a time, from the newest."""
    times = sorted(times)
    sizes = [max(1, round(share * len(times))) if share else 0 for share in (test, dev)]
    parts, ends = {}, len(times)
    for split, size in zip(("test", "dev"), sizes, strict=True):
        start = len(times) - sum(sizes[: 1 + (split == "dev")]) if size else ends
        while 0 < start < len(times) and times[start] == times[start - 1]:
            start -= 1  # rows of one time are in one split
        while start < len(times) and times[start] == times[0]:
            start += 1  # the oldest are train
        start = min(start, ends)
        parts[split], ends = times[start:ends], start
    return {"train": times[:ends], **parts}


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_one_time_are_in_one_split_and_the_oldest_are_train(tmp_path, out, seed):
    draws = random.Random(seed)
    times = [draws.choice([draws.randrange(9), draws.randrange(99)]) for _ in range(40)]
    dev, test = draws.choice([0.001, 0.1, 0.5]), draws.choice([0, 0.03, 0.45])
    rows = [row(at, timestamp_ms=START + time) for at, time in enumerate(times)]
    report = ingest(write_jsonl(tmp_path / "l.jsonl", rows), out, dev_share=dev, test_share=test)
    expected = parts_of(times, dev, test)
    assert {
        split: [one["timestamp_ms"] - START for one in rows_of(out, split)]
        for split in report.splits
    } == {split: part for split, part in expected.items() if part}


def test_many_rows_of_the_newest_time_are_all_dev(tmp_path, out):
    rows = [row(at, timestamp_ms=START + (at > 0)) for at in range(40)]
    report = ingest(write_jsonl(tmp_path / "log.jsonl", rows), out, dev_share=0.1)
    assert report.splits == {"train": 1, "dev": 39}


def test_without_dev_the_newest_of_train_become_dev(tmp_path, out):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / "train.parquet", log(100)[:90])
    write_log(folder / "test.parquet", log(100)[90:])
    assert ingest(str(folder), out, dev_share=0.2, test_share=0.5).splits == {
        "train": 72,
        "dev": 18,
        "test": 10,
    }


def test_a_run_replaces_all_files_of_an_earlier_run(tmp_path, out):
    path = write_log(tmp_path / "log.parquet", log(100))
    ingest(path, out, dev_share=0.2, test_share=0.1)
    assert "test.parquet" in files_in(out)
    ingest(path, out, dev_share=0.2)
    assert files_in(out) == ["dev.parquet", "report.json", "set_aside.jsonl", "train.parquet"]


def test_a_failed_run_leaves_the_earlier_splits_unchanged(tmp_path, out):
    ingest(write_log(tmp_path / "log.parquet", log(50)), out)
    before = {name: (pathlib.Path(out) / name).read_bytes() for name in files_in(out)}
    (tmp_path / "cut").mkdir()
    data = gzip.compress(b"".join(json.dumps(one).encode() + b"\n" for one in log(5_000)))
    (tmp_path / "cut" / "log.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="expected a whole jsonl file"):
        ingest(str(tmp_path / "cut"), out)
    del before["set_aside.jsonl"]
    assert {name: (pathlib.Path(out) / name).read_bytes() for name in before} == before
    assert set(files_in(out)) == {*before, "set_aside.jsonl"}


def test_a_log_of_one_time_is_not_split(tmp_path, out):
    path = write_log(tmp_path / "log.parquet", [row(at, timestamp_ms=START) for at in range(9)])
    with pytest.raises(UserError, match="its 9 rows all have the time 2025-06-15 15:06"):
        ingest(path, out)
    assert ingest(path, out, dev_share=0).splits == {"train": 9}


def test_rows_of_the_future_and_of_long_ago_do_not_change_the_split(tmp_path, out, capsys):
    rows = log(100)
    ingest(write_jsonl(tmp_path / "good.jsonl", rows), out, dev_share=0.2, test_share=0.1)
    expected = {split: rows_of(out, split) for split in ("train", "dev", "test")}
    odd = [4_070_908_800_000, 86_400_000, START - 4_000 * DAY]  # 2099, 1970, 2014
    odd = [row(900 + at, timestamp_ms=stamp) for at, stamp in enumerate(odd)]
    path = write_jsonl(tmp_path / "log.jsonl", [odd[0], *rows, *odd[1:]])
    capsys.readouterr()
    report = ingest(path, out, dev_share=0.2, test_share=0.1)
    assert {split: rows_of(out, split) for split in expected} == expected
    assert report.rows == 103 and report.set_aside == 3
    reasons = {one["row"]: one["reason"] for one in aside(out)}
    assert reasons[1] == "implausible time: after ingest.latest, in the future"
    assert reasons[102] == "implausible time: before ingest.earliest"
    assert reasons[103].startswith("implausible time: far away from all other rows")
    said = capsys.readouterr().out
    assert "in the future" in said and "far away" in said
    assert "splits by time; dev from 2025-06-22" in said and "; test from 2025-06-24" in said
    with pytest.raises(UserError, match="3 of 103 rows"):
        ingest(path, out, max_bad_share=0)


def test_a_log_that_is_not_split_may_begin_with_an_old_row(tmp_path, out):
    rows = [
        row(900, timestamp_ms=START - 40 * DAY),
        *log(50),
        row(901, timestamp_ms=START + 40 * DAY),
    ]
    report = ingest(write_jsonl(tmp_path / "log.jsonl", rows), out, dev_share=0)
    assert report.set_aside == 1 and rows_of(out)[0]["request_id"] == "r0900"
    assert aside(out)[0]["row"] == 52


@pytest.mark.parametrize("unit", [1e-3, 1e3, 1e6])
@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_times_in_another_unit_are_converted_and_reported(tmp_path, out, capsys, unit, write):
    rows = [row(at, timestamp_ms=int(START + at * 8_640_000) // 1000 * 1000) for at in range(50)]
    other = [{**one, "timestamp_ms": round(one["timestamp_ms"] * unit)} for one in rows]
    path = write(tmp_path / ("log.jsonl" if write is write_jsonl else "log.csv"), other)
    assert ingest(path, out, dev_share=0).set_aside == 0
    assert [one["timestamp_ms"] for one in rows_of(out)] == [one["timestamp_ms"] for one in rows]
    assert "times converted to milliseconds: 50 in " in capsys.readouterr().out


def test_the_plausible_range_is_a_setting(tmp_path, out):
    rows = [row(at, timestamp_ms=1_000 * at) for at in range(9)]
    path = write_jsonl(tmp_path / "log.jsonl", rows)
    with pytest.raises(UserError, match="all 9 rows were set aside|9 of 9 rows"):
        ingest(path, out, dev_share=0)
    assert ingest(path, out, dev_share=0, earliest="1970-01-01").accepted == 9
    with pytest.raises(UserError, match="ingest.latest='soon'"):
        ingest(path, out, latest="soon")
