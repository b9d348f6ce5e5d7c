"""Ingest: rows accepted or set aside with reasons, splits, and errors with a remedy."""

import csv
import errno
import gzip
import json
import os
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import staging
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.schema import LOG_SCHEMA, REQUIRED, normalise_prefix, normalise_query
from onesug_jax.logs.sift import DUPLICATE
from tests.log_rows import write_log

DAY = 86_400_000
START = 1_750_000_000_000


def row(number=0, **change):
    return {
        "request_id": f"r{number:04d}",
        "user_id": f"u{number % 3}",
        "session_id": f"s{number}",
        "timestamp_ms": START + number * DAY // 10,
        "prefix": "le",
        "shown": ["lego", "leash"],
        "query": "lego",
        "clicked_position": 0,
        "clicked_items": ["i1"],
        "ordered_items": [],
        **change,
    }


def log(count=100):
    return [row(number) for number in range(count)]


def write_jsonl(path, rows):
    """Rows are dicts, or raw lines as bytes."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_csv(path, rows, delimiter=","):
    def cell(value):
        if value is None or value == []:
            return ""
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in one.values()] for one in rows)
    return str(path)


def rows_of(folder, split="train"):
    return pq.read_table(pathlib.Path(folder) / f"{split}.parquet").to_pylist()


def aside(folder):
    with open(pathlib.Path(folder) / "set_aside.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def files_in(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


# Accepted rows


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "csv", "tsv", "semicolon.csv"])
def test_every_format_gives_the_same_rows(tmp_path, out, kind):
    rows = [
        row(0, query='Lego, "Star" 星', user_id="ü;x", shown=["a\tb", "c;d", "e,f\n"]),
        row(1, shown=[], clicked_position=None, clicked_items=[], ordered_items=["x", "y"]),
        row(2, prefix="", timestamp_ms=START + 3, user_id=""),
    ]
    rows = [{**one, "gender": gender} for one, gender in zip(rows, ("F", "", "M"), strict=True)]
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        write_log(path, rows, ("gender", pa.string()))
    elif kind.startswith("jsonl"):
        write_jsonl(path, rows)
    else:
        write_csv(path, rows, {"csv": ",", "tsv": "\t"}.get(kind, ";"))
    report = ingest(str(path), out, dev_share=0)
    assert (report.rows, report.accepted, report.set_aside) == (3, 3, 0)
    table = pq.read_table(pathlib.Path(out) / "train.parquet")
    assert table.schema.equals(pa.schema([*LOG_SCHEMA, ("gender", pa.string())]))
    expected = [dict(one) for one in rows]
    expected[0].update(query='lego, "star" 星', shown=["a b", "c;d", "e,f"])
    expected.sort(key=lambda one: one["timestamp_ms"])
    assert table.to_pylist() == expected


def test_text_is_normalised_and_the_click_still_points_at_its_entry(tmp_path, out):
    one = row(0, prefix="  Le ", query=" LEGO\u3000Set", shown=["Duplo", "duplo ", "", "LEGO  set"])
    ingest(write_jsonl(tmp_path / "log.jsonl", [{**one, "clicked_position": 3}]), out, dev_share=0)
    got = rows_of(out)[0]
    assert (got["prefix"], got["query"]) == ("le ", "lego set")
    assert got["shown"] == ["duplo", "lego set"]
    assert got["shown"][got["clicked_position"]] == "lego set"


def test_rows_are_sorted_by_time_and_request_id_over_all_files(tmp_path, out):
    rows = [row(number, timestamp_ms=START + number // 4) for number in range(2_000)]
    random.Random(3).shuffle(rows)
    folder = tmp_path / "logs" / "day=1"
    folder.mkdir(parents=True)
    for place in range(3):
        write_jsonl(folder / f"part-{place}.jsonl", rows[place::3])
    (tmp_path / "logs" / "README.md").write_text("no rows")
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    report = ingest(str(tmp_path / "logs"), out, dev_share=0)
    assert report.accepted == 2_000
    keys = [(one["timestamp_ms"], one["request_id"]) for one in rows_of(out)]
    assert keys == sorted((one["timestamp_ms"], one["request_id"]) for one in rows)
    again = str(tmp_path / "again")
    ingest(str(tmp_path / "logs" / "*" / "part-*.jsonl"), again, dev_share=0)
    first, second = (pathlib.Path(one, "train.parquet").read_bytes() for one in (out, again))
    assert first == second


def test_equivalent_types_are_converted(tmp_path, out):
    table = pa.table(
        {
            "request_id": pa.array([7, 8], pa.int64()),
            "user_id": pa.array(["u", "u"]).dictionary_encode(),
            "session_id": pa.array(["s", None], pa.large_string()),
            "timestamp_ms": pa.array([START, START + 1], pa.timestamp("ms")).cast(
                pa.timestamp("us", "Asia/Shanghai")
            ),
            "prefix": pa.array([b"l", b"m"]),
            "shown": pa.array([["lego"], None], pa.large_list(pa.large_string())),
            "query": ["lego", "maus"],
            "clicked_position": pa.array([0.0, float("nan")]),
            "clicked_items": pa.array([[5], []], pa.list_(pa.int64())),
            "ordered_items": pa.nulls(2),
            "age": pa.array([31.0, None]),
            "prime": pa.array([True, False]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    ingest(str(tmp_path / "log.parquet"), out, dev_share=0)
    first, second = rows_of(out)
    assert [first["request_id"], second["request_id"]] == ["7", "8"]
    assert [first["timestamp_ms"], second["timestamp_ms"]] == [START, START + 1]
    assert [first["clicked_position"], second["clicked_position"]] == [0, None]
    assert [first["clicked_items"], second["shown"], second["session_id"]] == [["5"], [], ""]
    assert [first["age"], second["age"], first["prime"]] == ["31", "", "true"]


def test_profile_columns_of_all_rows_are_united(tmp_path, out):
    rows = [row(0), row(1, gender="F"), row(2, age=31)]
    write_jsonl(tmp_path / "log.jsonl", rows)
    assert ingest(str(tmp_path / "log.jsonl"), out, dev_share=0).profile == ["age", "gender"]
    assert [(one["gender"], one["age"]) for one in rows_of(out)] == [
        ("", ""),
        ("F", ""),
        ("", "31"),
    ]
    named = ingest(str(tmp_path / "log.jsonl"), out, dev_share=0, profile=["gender"])
    assert named.profile == ["gender"]


# Rows set aside

BAD_LINES = [
    (b'{"request_id": "broken', "malformed JSON"),
    (b"[1, 2]", "JSON that is not an object"),
    (b"[" * 100_000, "malformed JSON"),
    (b'{"query": ' + b"9" * 5_000 + b"}", "malformed JSON"),
    (b'{"request_id": "x", "query": "caf\xe9"}', "not UTF-8"),
    (json.dumps(row(903, query="\ud800")).encode(), "not UTF-8"),
    (json.dumps(row(904, shown=["\udfff"])).encode(), "not UTF-8"),
    (row(905, query=None), "missing query"),
    ({k: v for k, v in row(906).items() if k != "query"}, "missing query"),
    (row(907, query=7.5), "query is not text"),
    (row(908, timestamp_ms="yesterday"), "timestamp_ms is not a number"),
    (row(909, timestamp_ms=True), "timestamp_ms is not a number"),
    (row(910, timestamp_ms=10**30), "timestamp_ms out of range"),
    (row(911, timestamp_ms=float("inf")), "timestamp_ms is not a number"),
    (row(912, timestamp_ms=12.5), "timestamp_ms is not a whole number"),
    (row(913, clicked_position=9), "clicked_position outside the shown list"),
    (row(914, clicked_position=2**40), "clicked_position outside the shown list"),
    (row(915, shown="lego"), "shown is not a JSON list"),
    (row(916, shown={"0": "lego"}), "shown is not a list"),
    (row(917, shown=["lego", {"text": "leash"}]), "shown entry is not text"),
    (row(918, prefix="p" * 65), "prefix over 64 characters"),
    (row(919, query="q" * 129), "query over 128 characters"),
    (row(920, request_id=""), "missing request_id"),
    (row(0, query="another"), DUPLICATE),
    (row(0, timestamp_ms=START - 5), DUPLICATE),
]


def test_every_row_of_a_broken_file_is_counted_with_its_reason(tmp_path, out, capsys):
    good = log(30)
    lines = [good[0], b"", *[line for line, _ in BAD_LINES], b"   ", *good[1:]]
    path = write_jsonl(tmp_path / "log.jsonl", lines)
    report = ingest(path, out, dev_share=0, max_bad_share=0.6)
    assert report.rows == report.accepted + report.set_aside == 30 + len(BAD_LINES)
    assert report.accepted == 30 and report.splits == {"train": 30}
    assert sum(report.reasons.values()) == report.set_aside
    assert {one["request_id"] for one in rows_of(out)} == {one["request_id"] for one in good}
    assert rows_of(out)[0]["query"] == "lego"  # the first of the repeated ones
    got = sorted((one["row"], one["reason"]) for one in aside(out))
    assert got == [(number, reason) for number, (_, reason) in enumerate(BAD_LINES, start=3)]
    assert {one["file"] for one in aside(out)} == {path}
    raw = {one["row"]: one["raw"] for one in aside(out)}
    assert raw[3] == '{"request_id": "broken' and "caf\\xe9" in raw[7]
    saved = json.loads((pathlib.Path(out) / "report.json").read_text())
    assert saved == json.loads(json.dumps(vars(report)))
    printed = capsys.readouterr().out
    for reason, count in report.reasons.items():
        assert f"{reason}" in printed and str(count) in printed


def test_bad_lines_of_csv_are_set_aside_with_their_line(tmp_path, out):
    header = ",".join(REQUIRED).encode()
    ok = b'%d,u,s,1750000000000,le,"[""lego""]",lego,0,,'
    lines = [
        b"\xef\xbb\xbf" + header,
        ok % 1,
        b"2,u,s,1750000000000,le,,caf\xe9,,,",
        b"3,u,s,1750000000000,le",
        b"",
        b'4,u,s,1750000000000,le,,"two\nlines",,,',
        b"5,u,s,noon,le,,lego,,,",
        b'6,u,s,1750000000000,le,"[""lego""",lego,,,',
        b"7,u,s,1750000000000.0,le,,lego,,,",
        b"8,u,s,1750000000000,le,,lego,first,,",
        b'9,u,s,1750000000000,le,,"' + b"x" * 200_000,  # a quote that never closes
    ]
    path = tmp_path / "log.csv"
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    report = ingest(str(path), out, dev_share=0, max_bad_share=1)
    assert report.rows == report.accepted + report.set_aside == 9
    assert [one["request_id"] for one in rows_of(out)] == ["1", "4", "7"]
    assert rows_of(out)[1]["query"] == "two lines"
    got = [(one["row"], one["reason"].split(":")[0]) for one in aside(out)]
    assert got == [
        (3, "not UTF-8"),
        (4, "number of cells differs from the header"),
        (12, "malformed CSV"),
        (8, "timestamp_ms is not a number"),
        (9, "shown is not a JSON list"),
        (11, "clicked_position is not a number"),
    ]


def test_parquet_text_that_is_not_utf8_is_set_aside(tmp_path, out):
    bad = pa.array([b"lego", b"caf\xe9", b"maus"]).view(pa.string())
    table = pa.Table.from_pylist(log(3), schema=LOG_SCHEMA)
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 2], pa.int32()), bad.slice(0, 2))
    place = LOG_SCHEMA.get_field_index
    table = table.set_column(place("query"), "query", bad)
    table = table.set_column(place("shown"), "shown", lists)
    table = table.set_column(place("clicked_position"), "clicked_position", pa.nulls(3, pa.int32()))
    pq.write_table(table, tmp_path / "log.parquet")
    report = ingest(str(tmp_path / "log.parquet"), out, dev_share=0, max_bad_share=1)
    assert report.reasons == {"not UTF-8": 2}
    assert [one["request_id"] for one in rows_of(out)] == ["r0000"]
    assert [one["row"] for one in aside(out)] == [2, 3]


def test_one_id_in_two_splits_is_written_in_one(tmp_path, out):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / "train.parquet", log(20))
    write_log(folder / "dev.parquet", [row(5), row(50)])
    report = ingest(str(folder), out, max_bad_share=0.2)
    ids = [one["request_id"] for split in ("train", "dev") for one in rows_of(out, split)]
    assert len(ids) == len(set(ids)) == report.accepted == 21
    assert report.reasons == {DUPLICATE: 1}


def test_too_many_bad_rows_stop_the_run_and_are_written(tmp_path, out):
    rows = [*log(40), row(90, query=""), row(91, query=""), row(92, clicked_position=7)]
    path = write_jsonl(tmp_path / "log.jsonl", rows)
    with pytest.raises(UserError) as stopped:
        ingest(path, out, dev_share=0, max_bad_share=0.05)
    message = str(stopped.value)
    assert "3 of 43 rows" in message and "missing query (2)" in message
    assert str(pathlib.Path(out) / "set_aside.jsonl") in message
    assert files_in(out) == ["set_aside.jsonl"] and len(aside(out)) == 3
    assert ingest(path, out, dev_share=0, max_bad_share=3 / 43).set_aside == 3


def test_reading_stops_early_if_half_of_many_rows_are_bad(tmp_path, out, monkeypatch):
    monkeypatch.setattr(staging, "EARLY_STOP_ROWS", 20)
    folder = tmp_path / "logs"
    folder.mkdir()
    for name, query in (("a", ""), ("b", "lego")):
        write_log(folder / f"{name}.parquet", [row(n, query=query) for n in range(20)])
    with pytest.raises(UserError, match="^20 of 20 rows were set aside"):
        ingest(str(folder), out)
    assert len(aside(out)) == 20


def test_a_log_of_bad_rows_alone_is_an_error(tmp_path, out):
    path = write_jsonl(tmp_path / "log.jsonl", [row(0, query="")])
    with pytest.raises(UserError, match="all 1 rows were set aside"):
        ingest(path, out, max_bad_share=1)


# Splits


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


# Times


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


@pytest.mark.long
def test_files_of_a_large_log_are_read_by_several_processes(tmp_path, out, monkeypatch):
    folder = tmp_path / "logs"
    folder.mkdir()
    rows = log(120)
    rows[70]["query"] = rows[100]["query"] = ""
    rows[110]["request_id"] = rows[3]["request_id"]
    for part in range(4):
        write_log(folder / f"part{part}.parquet", rows[part * 30 : part * 30 + 30])
    expected = ingest(str(folder), out, max_bad_share=0.1)
    files = {path.name: path.read_bytes() for path in pathlib.Path(out).iterdir()}
    monkeypatch.setattr("onesug_jax.logs.ingest._ONE_PROCESS", 0)
    engine = LogEngineConfig(workers=2)
    again = str(tmp_path / "again")
    assert ingest(str(folder), again, max_bad_share=0.1, engine=engine) == expected
    assert {path.name: path.read_bytes() for path in pathlib.Path(again).iterdir()} == files
    whole = (folder / "part2.parquet").read_bytes()
    (folder / "part2.parquet").write_bytes(whole[:4] + bytes(400) + whole[404:])
    with pytest.raises(UserError, match=r"part2.parquet: expected a whole parquet file"):
        ingest(str(folder), again, max_bad_share=0.1, engine=engine)
    assert {path.name: path.read_bytes() for path in pathlib.Path(again).glob("*.parquet")} == {
        name: content for name, content in files.items() if name.endswith(".parquet")
    }


# Errors in files, flags and columns


def test_a_full_disk_is_a_clear_error(tmp_path, out, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_log(tmp_path / "log.parquet", log(30))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(UserError, match="out: writing there failed: No space left.*free some"):
        ingest(path, out)
    assert files_in(out) == ["set_aside.jsonl"]
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="writing there failed: No space left"):
        ingest(path, out)


def test_brackets_in_paths_are_literal(tmp_path):
    folder = tmp_path / "a [b]*"
    folder.mkdir()
    write_log(folder / "log [1].parquet", log(30))
    assert ingest(str(folder), str(tmp_path / "out [2]"), dev_share=0).accepted == 30


def without(column, **renamed):
    return [{renamed.get(k, k): v for k, v in one.items() if k != column} for one in log(3)]


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_a_missing_column_is_named_with_a_similar_one(tmp_path, out, write):
    path = tmp_path / ("log.jsonl" if write is write_jsonl else "log.csv")
    write(path, without(None, timestamp_ms="timestamp"))
    with pytest.raises(UserError) as stopped:
        ingest(str(path), out)
    message = str(stopped.value)
    assert str(path) in message and "'timestamp_ms' is missing" in message
    assert "Rename column 'timestamp' to 'timestamp_ms'" in message
    write(path, without("ordered_items"))
    with pytest.raises(UserError) as stopped:
        ingest(str(path), out)
    message = str(stopped.value)  # without advice to rename a correct column
    assert "Add column 'ordered_items', null or an empty list where unknown" in message
    write(path, without(None, query="QUERY"))
    with pytest.raises(UserError, match="Rename column 'QUERY' to 'query'"):
        ingest(str(path), out)


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        ("timestamp_ms", pa.string(), "milliseconds since 1970"),
        ("shown", pa.string(), "lists of text"),
        ("query", pa.int64(), "text"),
        ("clicked_position", pa.string(), "whole numbers"),
        ("history", pa.string(), "lists of text"),
        ("gender", pa.list_(pa.string()), "single values"),
    ],
)
def test_a_wrong_type_in_parquet_names_column_expected_and_found(
    tmp_path, out, column, kind, expected
):
    table = pa.Table.from_pylist(log(3), schema=LOG_SCHEMA)
    if column in table.column_names:
        table = table.drop_columns([column])
    pq.write_table(table.append_column(column, pa.nulls(3, kind)), tmp_path / "log.parquet")
    with pytest.raises(UserError) as stopped:
        ingest(str(tmp_path / "log.parquet"), out)
    message = str(stopped.value)
    assert "log.parquet" in message and f"{column!r}" in message
    assert expected in message and f"found {str(kind).split('<')[0]}" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.parquet", b"", "the file is empty"),
        ("log.parquet", b"PAR1 but no more", "expected a whole parquet file"),
        ("log.jsonl", b"", "the file is empty"),
        ("log.jsonl", b"\n \n", "found none"),
        ("log.jsonl", b'[\n{"query": "a"}]', "found one JSON array"),
        ("log.jsonl", b"a,b\n1,2\n", "expected one JSON object a line"),
        ("log.jsonl.gz", b"not gzip at all", "expected a whole jsonl file"),
        ("log.jsonl.gz", gzip.compress(json.dumps(row()).encode() * 99)[:-20], "whole jsonl file"),
        ("log.csv", ",".join(REQUIRED).encode() + b"\n", "no rows"),
        ("log.xlsx", b"PK", "expected a name ending in"),
    ],
)
def test_a_file_that_is_not_a_log_is_named(tmp_path, out, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as stopped:
        ingest(str(path), out)
    assert said in str(stopped.value) and str(path) in str(stopped.value)


def test_an_empty_split_is_an_error_and_an_empty_shard_is_not(tmp_path, out):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / "train-0.parquet", log(50))
    write_log(folder / "train-1.parquet", [])
    assert ingest(str(folder), out).accepted == 50
    write_log(folder / "dev.parquet", [])
    with pytest.raises(UserError, match=r"dev\.parquet: no rows"):
        ingest(str(folder), out)


def test_wrong_paths_and_flags_are_named(tmp_path, out):
    path = write_log(tmp_path / "log.parquet", log(50))
    with pytest.raises(UserError, match="found nothing"):
        ingest(str(tmp_path / "*.jsonl"), out)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match="found none"):
        ingest(str(tmp_path / "hollow"), out)
    with pytest.raises(UserError, match="did you mean 'kuaisearch'"):
        ingest(path, out, adapter="kuai_search")
    with pytest.raises(UserError, match="max_bad_share"):
        ingest(path, out, max_bad_share=5)
    for shares in ((-0.1, 0), (0, -0.1), (0.5, 0.5), (1, 0), (float("nan"), 0)):
        with pytest.raises(UserError, match="dev_share.*less than 1 in sum"):
            ingest(path, out, dev_share=shares[0], test_share=shares[1])
    with pytest.raises(UserError, match="the folder of the log itself"):
        ingest(str(tmp_path), str(tmp_path))
    with pytest.raises(UserError, match="expected a folder to write in"):
        ingest(path, path)
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_log(folder / "train.parquet", log(50))
    write_log(folder / "more.parquet", log(50))
    with pytest.raises(UserError, match="its split is unclear"):
        ingest(str(folder), out)


def test_results_inside_the_log_folder_are_not_read_back(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / "log.parquet", log(50))
    for _ in range(2):
        assert ingest(str(folder), str(folder / "clean")).rows == 50


def test_too_many_profile_columns_are_refused(tmp_path, out):
    rows = [row(number, **{f"key{number}": "x"}) for number in range(70)]
    with pytest.raises(UserError, match="at most 64 profile columns"):
        ingest(write_jsonl(tmp_path / "log.jsonl", rows), out)


def test_a_small_memory_limit_suffices(tmp_path, out):
    rows = [
        row(
            number,
            timestamp_ms=START + number * 60_000,
            query=f"query {number}",
            shown=[],
            clicked_position=None,
        )
        for number in range(30_000)
    ]
    random.Random(0).shuffle(rows)
    path = write_log(tmp_path / "log.parquet", rows)
    assert ingest(path, out, engine=LogEngineConfig(memory_limit="100MB")).accepted == 30_000
    assert not [name for name in files_in(out) if name.startswith(".")]


@pytest.mark.parametrize("name", ["shoplog_en_small", "shoplog_zh"])
def test_all_rows_of_a_real_log_are_accepted_and_normalised(shared_data, out, name):
    report = ingest(str(shared_data / name), out)
    assert report.set_aside == 0 and report.profile == ["age", "gender"]
    for split in ("train", "dev"):
        expected = pq.read_table(shared_data / name / f"{split}.parquet").to_pylist()
        expected.sort(key=lambda one: (one["timestamp_ms"], one["request_id"]))
        for one in expected:
            position, shown = one["clicked_position"], one["shown"]
            one["prefix"] = normalise_prefix(one["prefix"])
            one["query"] = normalise_query(one["query"])
            one["shown"] = list(dict.fromkeys(map(normalise_query, shown)))
            if position is not None:
                one["clicked_position"] = one["shown"].index(normalise_query(shown[position]))
        assert rows_of(out, split) == expected
