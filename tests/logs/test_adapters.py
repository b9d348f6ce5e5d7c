"""Adapters: files in the exact format of public logs become rows by the documented rules."""

import collections
import datetime
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.adapters import choose_adapter, make_adapters
from onesug_jax.logs.find import find_files
from onesug_jax.logs.history import with_history
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.schema import LOG_SCHEMA, Level, request_level


def millis(*moment):
    return int(datetime.datetime(*moment, tzinfo=datetime.UTC).timestamp() * 1000)


def rows_of(folder, split="train"):
    return pq.read_table(pathlib.Path(folder) / f"{split}.parquet").to_pylist()


def reasons_of(folder):
    with open(pathlib.Path(folder) / "set_aside.jsonl", encoding="utf-8") as file:
        return [(line["row"], line["reason"]) for line in map(json.loads, file)]


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


# AmazonQAC, in the columns of its published files

QAC_TRAIN = pa.schema(
    [
        ("query_id", pa.int64()),
        ("session_id", pa.string()),
        ("prefixes", pa.list_(pa.string())),
        ("first_prefix_typed_time", pa.string()),
        ("final_search_term", pa.string()),
        ("search_time", pa.string()),
        ("popularity", pa.int64()),
    ]
)
QAC_TEST = pa.schema(
    [
        ("query_id", pa.int64()),
        ("session_id", pa.string()),
        ("past_search_terms", pa.list_(pa.list_(pa.string()))),
        ("prefix", pa.string()),
        ("prefix_typed_time", pa.string()),
        ("final_search_term", pa.string()),
        ("search_time", pa.string()),
    ]
)


def qac_train(number, **change):
    day = 1 + number % 28
    return {
        "query_id": number,
        "session_id": f"{number % 5}",
        "prefixes": ["h", "ho", "hoo", "hook "],
        "first_prefix_typed_time": f"2023-09-{day:02d}T10:05:14.293Z",
        "final_search_term": f"Hook rail {number}",
        "search_time": f"2023-09-{day:02d} 10:05:27",
        "popularity": 40,
        **change,
    }


def qac_test(number, **change):
    return {
        "query_id": number,
        "session_id": "9",
        "past_search_terms": [
            ["Garden Hose", "2023-10-10 08:15:00"],
            ["kite for kids", "2023-10-06T19:30:05Z"],
            ["typed afterwards", "2023-10-11 09:20:10.300"],
        ],
        "prefix": "kitch",
        "prefix_typed_time": "2023-10-11T09:20:10.256Z",
        "final_search_term": "kitchen scale",
        "search_time": "2023-10-11 09:20:14",
        **change,
    }


@pytest.fixture
def qac(tmp_path):
    """Folders train/ and test/ of Parquet files, as published."""
    for name, schema, make in (("train", QAC_TRAIN, qac_train), ("test", QAC_TEST, qac_test)):
        (tmp_path / "qac" / name).mkdir(parents=True)
        rows = [make(number) for number in range(60 if name == "train" else 4)]
        path = tmp_path / "qac" / name / "part-00000.snappy.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="snappy")
    return str(tmp_path / "qac")


def test_amazonqac_in_its_published_layout(qac, out):
    report = ingest(qac, out, dev_share=0.2)
    assert report.set_aside == 0 and report.profile == []
    assert report.splits["test"] == 4 and report.splits["dev"] > 0
    assert sum(report.splits.values()) == report.rows == 64
    row = rows_of(out)[0]
    assert row["user_id"] == row["session_id"] and row["request_id"] == f"{row['user_id']}/0"
    assert row["timestamp_ms"] == millis(2023, 9, 1, 10, 5, 14, 293_000)
    assert row["query"] == "hook rail 0" and row["prefix"] in ("h", "ho", "hoo", "hook ")
    assert row["shown"] == row["clicked_items"] == row["ordered_items"] == []
    assert row["clicked_position"] is None and row["history"] is None
    test = rows_of(out, "test")[0]
    assert test["timestamp_ms"] == millis(2023, 10, 11, 9, 20, 10, 256_000)
    assert test["history"] == ["kite for kids", "garden hose"]  # oldest first, none later


def test_amazonqac_history_reaches_the_model_newest_first(qac, out):
    ingest(qac, out, dev_share=0.2)
    files = [str(pathlib.Path(out) / f"{name}.parquet") for name in ("train", "dev", "test")]
    test = with_history(files, keep=files[2]).read_all().to_pylist()
    assert test[0]["recent"] == ["garden hose", "kite for kids"]
    assert test[0]["recent_minutes"] == pytest.approx([1505.1709, 6590.0876])
    dev = with_history(files, keep=files[1]).read_all().to_pylist()
    assert any(row["recent"] for row in dev)  # a session is a user


def test_amazonqac_prefix_choice_is_seeded_and_uniform(tmp_path, out):
    rows = [qac_train(number) for number in range(2_000)]
    path = str(tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=QAC_TRAIN), path)

    def chosen(**options):
        ingest(path, out, dev_share=0, **options)
        return {row["request_id"]: row["prefix"] for row in rows_of(out)}

    first = chosen(seed=1)
    assert chosen(seed=1) == first != chosen(seed=2)
    counts = collections.Counter(first.values())
    assert set(counts) == {"h", "ho", "hoo", "hook "}
    assert all(400 < count < 600 for count in counts.values())  # 500, five standard deviations
    assert set(chosen(prefixes="last").values()) == {"hook "}
    every = chosen(prefixes="all")
    assert len(every) == 8_000
    assert [every[f"0/0.{place}"] for place in range(4)] == ["h", "ho", "hoo", "hook "]


def test_amazonqac_bad_rows_are_counted_once_for_each_row_made_of_them(tmp_path, out):
    rows = [
        *(qac_train(number) for number in range(10)),
        qac_train(10, prefixes=[]),
        qac_train(11, first_prefix_typed_time="soon"),
        qac_train(12, first_prefix_typed_time=None),
        qac_train(13, final_search_term=" "),
        qac_train(14, query_id=None),
    ]
    path = str(tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=QAC_TRAIN), path)
    report = ingest(path, out, dev_share=0, prefixes="all", max_bad_share=0.5)
    assert report.accepted == 44  # row 13 of the file falls back on search_time
    assert report.rows == report.accepted + report.set_aside
    assert collections.Counter(reasons_of(out)) == {
        (11, "prefixes is empty"): 1,
        (12, "first_prefix_typed_time is not a time"): 1,
        (14, "missing query"): 4,
        (15, "missing request_id"): 4,
    }
    report = ingest(path, out, dev_share=0, prefixes="one", max_bad_share=0.5)
    assert (report.rows, report.accepted, report.set_aside) == (15, 11, 4)


@pytest.mark.parametrize("shape", ["json text", "structs"])
def test_amazonqac_past_terms_may_be_json_or_structs(tmp_path, out, shape):
    rows = [qac_test(0), qac_test(1, past_search_terms=[]), qac_test(2, past_search_terms=None)]
    for row in rows:
        past = row["past_search_terms"]
        if shape == "json text":
            row["past_search_terms"] = None if past is None else json.dumps(past)
        elif past:
            row["past_search_terms"] = [{"term": term, "time": time} for term, time in past]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    ingest(str(tmp_path / "test.parquet"), out, dev_share=0)
    expected = [["kite for kids", "garden hose"], [], []]
    assert [row["history"] for row in rows_of(out)] == expected


def test_amazonqac_past_terms_that_are_not_pairs_are_set_aside(tmp_path, out):
    rows = [
        qac_test(0),
        qac_test(1, past_search_terms=[["term"]]),
        qac_test(2, past_search_terms=[["term", "then"]]),
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ingest(str(path), out, dev_share=0, max_bad_share=1).accepted == 1
    assert reasons_of(out) == [
        (2, "past_search_terms is not a list of [term, time]"),
        (3, "past_search_terms time is not a time"),
    ]


def test_amazonqac_errors_name_the_column_or_setting(tmp_path, out):
    table = pa.Table.from_pylist([qac_train(0)], schema=QAC_TRAIN)
    path = str(tmp_path / "train.parquet")
    pq.write_table(table.drop_columns(["search_time"]), path)
    with pytest.raises(UserError, match="'search_time' is missing .adapter 'amazonqac'"):
        ingest(path, out)
    pq.write_table(table, path)
    with pytest.raises(UserError, match="'one', 'last' or 'all'"):
        ingest(path, out, prefixes="longest")


# KuaiSearch


def kuai(number, **change):
    return {
        "user_id": number % 7,
        "session_id": number,
        "impressed_item_ids": [1, 2, 3],
        "clicked_item_ids": [2] if number % 2 else [],
        "purchased_item_ids": [2] if number % 4 == 1 else [],
        "time_index": number * 3_600,
        "query": "蓝色双肩旅行背包大号",
        "split": "test" if number >= 90 else "train",
        **change,
    }


@pytest.fixture
def kuaisearch(tmp_path):
    folder = tmp_path / "kuai"
    folder.mkdir()

    def write(name, rows):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text("".join(lines), encoding="utf-8")

    write("recall.jsonl", [kuai(number) for number in range(100)])
    write("users.jsonl", [{"user_id": 1, "gender": "F", "age": 31}, {"user_id": 2, "gender": "M"}])
    write("items.jsonl", [{"item_id": 2, "item_title": "x"}])
    return folder


def test_kuaisearch_sessions_users_and_splits(kuaisearch, out):
    report = ingest(str(kuaisearch), out, dev_share=0.1)
    assert report.rows == report.accepted == 100 and report.profile == ["age", "gender"]
    assert report.splits == {"train": 81, "dev": 9, "test": 10}
    rows = [row for split in report.splits for row in rows_of(out, split)]
    profile = {row["user_id"]: (row["gender"], row["age"]) for row in rows}
    assert [profile[user] for user in "0126"] == [("", ""), ("F", "31"), ("M", ""), ("", "")]
    assert [row["timestamp_ms"] for row in rows] == [n * 3_600_000 for n in range(100)]
    levels = [request_level(row["clicked_items"], row["ordered_items"]) for row in rows[:4]]
    assert levels == [Level.CLICK, Level.ORDER, Level.CLICK, Level.ITEM_CLICK]
    assert all(row["shown"] == [] for row in rows)


def test_kuaisearch_prefixes_are_seeded_and_of_every_length(kuaisearch, tmp_path):
    def prefixes(seed, **options):
        folder = str(tmp_path / f"out{seed}")
        ingest(str(kuaisearch), folder, dev_share=0, seed=seed, **options)
        return [row["prefix"] for split in ("train", "test") for row in rows_of(folder, split)]

    first = prefixes(1)
    assert prefixes(1) == first != prefixes(2)
    assert {prefix for prefix in first} == {kuai(0)["query"][:n] for n in range(1, 11)}
    assert max(map(len, prefixes(1, max_prefix=4))) == 4


def test_kuaisearch_faults(kuaisearch, out):
    lines = [kuai(100, query=""), kuai(101, split="later"), kuai(102, time_index="x")]
    with open(kuaisearch / "recall.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    report = ingest(str(kuaisearch), out, dev_share=0.1, max_bad_share=0.1)
    assert report.accepted == 100
    assert sorted(reasons_of(out)) == [
        (101, "missing query"),
        (102, "split is none of train, dev, test"),
        (103, "time_index is not a number"),
    ]
    (kuaisearch / "recall.jsonl").unlink()
    with pytest.raises(UserError, match="no requests"):
        ingest(str(kuaisearch), out, adapter="kuaisearch")


# The OneSug authors' sample

SAMPLE = (
    "杯\t玻璃壶,小茶匙\t杯垫,杯垫木质\t杯刷长柄\t杯架,杯盖,杯套,杯c\t2.0\t0.47\n"
    "梯子\t\t梯子架\t梯子家用折叠\t梯子凳\t0.97\t0.52\n"
    "y\ta\tb\tc\td,e\t1.53\t0.0\n"
)


def test_the_sample_becomes_rows_with_levels_and_history(tmp_path, out):
    path = tmp_path / "data.txt"
    path.write_text(SAMPLE, encoding="utf-8")
    ingest(str(tmp_path), out, dev_share=0)
    rows = rows_of(out)
    assert [row["prefix"] for row in rows] == ["杯", "梯子", "y"]
    assert [row["query"] for row in rows] == ["杯刷长柄", "梯子家用折叠", "c"]
    levels = [request_level(row["clicked_items"], row["ordered_items"]) for row in rows]
    assert levels == [Level.ORDER, Level.CLICK, Level.ITEM_CLICK]
    train = str(pathlib.Path(out) / "train.parquet")
    recent = with_history([train], keep=train).read_all()["recent"].to_pylist()
    assert recent == [["玻璃壶", "小茶匙"], [], ["a"]]


def test_a_line_of_the_sample_without_a_score_is_set_aside(tmp_path, out):
    path = tmp_path / "data.txt"
    path.write_text(SAMPLE + "y\ta\tb\tc\td\thigh\t0\n", encoding="utf-8")
    report = ingest(str(tmp_path), out, dev_share=0, max_bad_share=0.5)
    assert (report.accepted, report.reasons) == (3, {"pos_score is not a number": 1})
    path.with_suffix(".tsv").write_text("prefix\tquery\nx\ty\n")
    with pytest.raises(UserError, match="seven tab-separated columns"):
        ingest(str(path.with_suffix(".tsv")), out, adapter="onesug")


# The choice of the adapter


def test_each_shared_sample_is_recognised_and_read_completely(shared_data, tmp_path):
    adapters = make_adapters()
    for folder, name, rows in (
        ("shoplog_zh", "schema", None),
        ("kuaisearch_demo", "kuaisearch", 200),
        ("onesug_official_sample", "onesug", 10),
    ):
        sources = find_files(str(shared_data / folder))
        assert choose_adapter(sources, "auto", adapters).name == name
        if rows:
            report = ingest(str(shared_data / folder), str(tmp_path / folder), dev_share=0.1)
            assert report.accepted == report.rows == rows


def test_the_schema_is_the_fallback(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(LOG_SCHEMA.names) + "\n")
    sources = find_files(str(path))
    assert choose_adapter(sources, "auto", make_adapters()).name == "schema"
