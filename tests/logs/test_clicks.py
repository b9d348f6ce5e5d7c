"""Plain search logs: recognised columns, sessions, joined items, random prefixes."""

import collections
import csv
import pathlib

import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.clicks import Clicks
from onesug_jax.logs.ingest import ingest

NOON = 1_700_000_000  # seconds
MINUTE = 60


def write(path, header, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def read(folder):
    table = pq.read_table(pathlib.Path(folder) / "train.parquet")
    assert len(set(table["request_id"].to_pylist())) == table.num_rows
    return table.to_pylist()


def rows_of(tmp_path, header, rows, **options):
    options.setdefault("max_bad_share", 0.9)
    path = write(tmp_path / "log.csv", header, rows)
    report = ingest(path, str(tmp_path / "out"), dev_share=0, **options)
    assert report.rows == report.accepted + report.set_aside
    return read(tmp_path / "out"), report


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        ("user,time,query", "user time query"),
        ("AnonID,Query,QueryTime,ItemRank,ClickURL", "AnonID QueryTime Query ClickURL"),
        ("visitorId,timestamp,search_term,sku", "visitorId timestamp search_term sku"),
        ("date,customer_id,keyword,product-id,is_purchase",
         "customer_id date keyword product-id is_purchase"),
        ("Session ID,ts,q", "Session ID ts q"),
        ("event_time,event_type,product_id,user_id,user_session,search_query",
         "user_id event_time search_query product_id event_type"),
    ],
)  # fmt: skip
def test_columns_are_recognised_by_their_names(header, roles):
    found = Clicks().roles(header.split(","))
    names = [found[role] for role in ("user", "time", "query", "item", "order") if role in found]
    assert " ".join(names) == roles


def test_settings_have_priority_and_a_dash_means_none():
    columns = ["user", "time", "query", "item", "typed_text"]
    found = Clicks(query="typed_text", item="-").roles(columns)
    assert found == {"user": "user", "time": "time", "query": "typed_text"}


def test_unrecognised_columns_are_an_error_with_header_and_flag(tmp_path):
    path = write(tmp_path / "log.csv", ["who", "time", "what"], [["a", NOON, "cup"]])
    with pytest.raises(UserError) as stopped:
        ingest(path, str(tmp_path / "out"), adapter="clicks")
    said = str(stopped.value)
    assert path in said and "The header is: who, time, what" in said
    assert "--gin.clicks.user=COLUMN --gin.clicks.query=COLUMN" in said
    clicks = Clicks(user="who", query="wat")
    with pytest.raises(UserError, match="clicks.query='wat'.*header is: who, time, what"):
        ingest(path, str(tmp_path / "out"), adapter="clicks", clicks=clicks)
    clicks = Clicks(user="who", query="what")
    assert (
        ingest(path, str(tmp_path / "out"), adapter="clicks", clicks=clicks, dev_share=0).accepted
        == 1
    )


@pytest.mark.parametrize(
    "stamps",
    [
        [NOON, NOON + 1],
        [NOON * 1000, NOON * 1000 + 1000],
        [f"{NOON}.0", f"{NOON + 1}.0"],
        [NOON * 1_000_000, (NOON + 1) * 1_000_000],
        ["2023-11-14 22:13:20", "2023-11-14T22:13:21Z"],
        ["2023-11-14 22:13:20 UTC", NOON + 1],
    ],
)
def test_usual_forms_of_times_are_read(tmp_path, stamps):
    rows, _ = rows_of(tmp_path, ["user", "time", "query"], [["a", t, "cup"] for t in stamps])
    assert [row["timestamp_ms"] for row in rows] == [NOON * 1000, NOON * 1000 + 1000]


def test_other_times_need_a_format(tmp_path):
    log = [["a", "14/11/2023 22:13", "cup"], ["a", "soon", "cup"]]
    rows, report = rows_of(
        tmp_path, ["user", "time", "query"], log, clicks=Clicks(time_format="%d/%m/%Y %H:%M")
    )
    assert [row["timestamp_ms"] for row in rows] == [(NOON - 20) * 1000]
    assert list(report.reasons) == ["time is not a time of format '%d/%m/%Y %H:%M'"]


def test_items_join_their_search(tmp_path):
    """By their query, or to the latest search, within a session (gaps of at most 30 minutes)."""
    log = [
        ["a", NOON, "Oak Mat", "", ""],
        ["b", NOON + 1, "oak mat", "", ""],
        ["a", NOON + 60, "tin jug", "i1", "0"],
        ["a", NOON + 90, "tin jug", "i2", "purchase"],
        ["a", NOON + 95, "", "i3", ""],
        ["a", NOON + 99, "oak mat", "i4", ""],
        ["a", NOON + 99, "", "i4", "1"],
        ["a", NOON + 99 + 31 * MINUTE, "", "i5", ""],  # too late for a search
        ["a", NOON + 99 + 40 * MINUTE, "tin jug", "", ""],
        ["", NOON + 5, "", "i6", ""],
        ["c", NOON + 5, "", "", ""],
    ]
    rows, report = rows_of(tmp_path, ["user", "time", "query", "item", "bought"], log)
    found = [(r["user_id"], r["query"], r["clicked_items"], r["ordered_items"]) for r in rows]
    assert found == [
        ("a", "oak mat", ["i4"], ["i4"]),
        ("b", "oak mat", [], []),
        ("a", "tin jug", ["i1", "i3"], ["i2"]),
        ("a", "tin jug", [], []),
    ]
    sessions = [row["session_id"] for row in rows]
    assert sessions[0] == sessions[2] and len(set(sessions)) == 3
    assert report.joined == 4 and report.rows + report.joined == len(log)
    assert report.reasons == {"an item without a search before it": 2, "missing query": 1}


def test_a_row_for_each_click_of_one_search_is_one_search(tmp_path):
    log = [["a", NOON, "cup", "i1"], ["a", NOON, "cup", "i2"], ["a", NOON + 60, "cup", ""]]
    rows, report = rows_of(tmp_path, ["user", "time", "query", "item"], log)
    assert [row["clicked_items"] for row in rows] == [["i1", "i2"], []] and report.joined == 1


def test_sessions_and_prefixes_of_the_log_have_priority(tmp_path):
    header = ["user", "session", "time", "prefix", "query"]
    log = [["a", "s1", NOON, "cu", "cup"], ["a", "s2", NOON + 1, "", "cup"]]
    rows, _ = rows_of(tmp_path, header, log, adapter="clicks")
    assert [(row["session_id"], row["prefix"]) for row in rows] == [("s1", "cu"), ("s2", "")]


def test_prefixes_are_seeded_mostly_short_and_sometimes_complete(tmp_path):
    header, query = ["user", "time", "query"], "copper kettle with a lid"
    log = [[f"u{at}", NOON + at, query] for at in range(3_000)]
    first = {r["request_id"]: r["prefix"] for r in rows_of(tmp_path, header, log, seed=1)[0]}
    again = {r["request_id"]: r["prefix"] for r in rows_of(tmp_path, header, log[::-1], seed=1)[0]}
    other = {r["request_id"]: r["prefix"] for r in rows_of(tmp_path, header, log, seed=2)[0]}
    assert first == again and first.keys() == other.keys() and first != other
    assert all(query.startswith(prefix) and prefix for prefix in first.values())
    lengths = collections.Counter(map(len, first.values()))
    assert 0.5 < sum(lengths[n] for n in range(1, 5)) / 3_000 < 0.7
    assert 0.06 < lengths[len(query)] / 3_000 < 0.11
    assert lengths[1] > lengths[3] > lengths[6] > lengths[9]


def test_a_prefix_for_each_letter(tmp_path):
    rows, report = rows_of(
        tmp_path,
        ["user", "time", "query"],
        [["a", NOON, "red Cup"]],
        clicks=Clicks(prefixes="letters"),
    )
    assert sorted(row["prefix"] for row in rows) == ["red cup"[:n] for n in range(1, 8)]
    assert report.accepted == 7
    with pytest.raises(UserError, match="'one'.*'letters'"):
        Clicks(prefixes="all")


def test_other_columns_may_become_profile(tmp_path):
    words = ["cup", "mat", "jug", "fan", "pan"]
    log = [
        [f"u{at % 9}", NOON + at, words[at * 7 % 5], "FM"[at % 9 % 2], f"top {words[at * 7 % 5]}"]
        for at in range(90)
    ]
    rows, report = rows_of(tmp_path, ["user", "time", "query", "gender", "category"], log)
    assert report.profile == ["gender"] and list(report.left_out) == ["category"]
    assert {row["gender"] for row in rows} == {"F", "M"}


def test_auto_reads_logs_in_the_schema_with_its_adapter(tmp_path):
    path = write(
        tmp_path / "log.csv",
        ["user_id", "timestamp", "query", "clicked_items"],
        [["a", NOON, "cup", ""]],
    )
    with pytest.raises(UserError, match="adapter 'schema'"):
        ingest(path, str(tmp_path / "out"))
