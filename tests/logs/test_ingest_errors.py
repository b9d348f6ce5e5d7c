"""Ingest: rows set aside with reasons, and errors with a way out."""

import errno
import gzip
import json
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import staging
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.schema import LOG_SCHEMA, REQUIRED
from onesug_jax.logs.sift import DUPLICATE
from tests.log_rows import write_log
from tests.raw_logs import START, aside, files_in, log, row, rows_of, write_csv, write_jsonl

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


def test_too_many_profile_columns_are_refused(tmp_path, out):
    rows = [row(number, **{f"key{number}": "x"}) for number in range(70)]
    with pytest.raises(UserError, match="at most 64 profile columns"):
        ingest(write_jsonl(tmp_path / "log.jsonl", rows), out)
