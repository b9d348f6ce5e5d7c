"""Ingest: the rows of each format, in order, whatever reads and sorts them."""

import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.schema import LOG_SCHEMA, normalise_prefix, normalise_query
from tests.log_rows import write_log
from tests.raw_logs import START, files_in, log, row, rows_of, write_csv, write_jsonl


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


def test_brackets_in_paths_are_literal(tmp_path):
    folder = tmp_path / "a [b]*"
    folder.mkdir()
    write_log(folder / "log [1].parquet", log(30))
    assert ingest(str(folder), str(tmp_path / "out [2]"), dev_share=0).accepted == 30


def test_results_inside_the_log_folder_are_not_read_back(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(folder / "log.parquet", log(50))
    for _ in range(2):
        assert ingest(str(folder), str(folder / "clean")).rows == 50


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
