"""Spark and DuckDB read and mine a log alike: the same files, to the last byte."""

import json
import os
import pathlib
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import engines, profile_choice
from onesug_jax.logs.ingest import ingest
from onesug_jax.logs.mined import TABLES, read_table
from onesug_jax.logs.mining import mine
from onesug_jax.logs.simulate import simulate


def engine_config(name, scratch):
    return engines.LogEngineConfig(name, "1GB", str(scratch), "local[2]")


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.fixture
def quick_java(spark, monkeypatch):
    """Java without its slower optimisations, as most code runs few times here."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


def write_in_parts(table, folder):
    """A log of several files, with rows of every kind that ingest sets aside."""
    rows = table.to_pylist()
    random.Random(0).shuffle(rows)
    for row in rows:
        row["shop of choice"] = ("north", "south")[row["timestamp_ms"] % 2]
    rows[5]["query"] = ""
    rows += [{**rows[0], "prefix": "again"}, {**rows[1]}]
    rows.append({**rows[2], "request_id": "late", "timestamp_ms": 1_900_000_000_000})
    folder.mkdir()
    third = len(rows) // 3
    pq.write_table(pa.Table.from_pylist(rows[:third]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[third : 2 * third]), folder / "b.parquet")
    for row in rows[2 * third :]:  # the third file lacks a column and has another
        row["age"] = str(20 + row.pop("timestamp_ms") % 7)
        row["timestamp_ms"] = rows[3]["timestamp_ms"] if row["request_id"] != "late" else 1.9e12
        del row["gender"]
    lines = [json.dumps(row) for row in rows[2 * third :]]
    (folder / "c.jsonl").write_text("\n".join([*lines, "{"]))


@pytest.mark.long
def test_both_engines_read_a_log_into_the_same_files(tmp_path, monkeypatch, quick_java):
    simulate(str(tmp_path / "log"), requests=1500, seed=3)
    write_in_parts(pq.read_table(tmp_path / "log" / "train.parquet"), tmp_path / "parts")
    monkeypatch.setattr(profile_choice, "SAMPLE_ROWS", 900)  # so that a sample is drawn
    reports = [
        ingest(
            str(tmp_path / "parts"),
            str(tmp_path / name),
            engine=engine_config(name, tmp_path / f"scratch {name}"),
            test_share=0.05,
            latest="2040-01-01",
        )
        for name in engines.ENGINES
    ]
    assert reports[0] == reports[1]
    assert reports[0].set_aside == sum(reports[0].reasons.values()) == 5
    assert {"age", "gender", "shop of choice"} <= {*reports[0].profile, *reports[0].left_out}
    assert set(reports[0].splits) == {"train", "dev", "test"}
    found = contents(tmp_path / "duckdb")
    assert len(found) == 5
    assert contents(tmp_path / "spark") == found
    assert os.listdir(tmp_path / "scratch spark") == []


@pytest.mark.long
def test_both_engines_mine_the_same_tables(tmp_path, quick_java):
    simulate(str(tmp_path / "log"), requests=3000, language="zh", seed=4)
    # A path with pattern characters, and a folder with a space in its name.
    log = tmp_path / "log [1] {a}*.parquet"
    os.rename(tmp_path / "log" / "train.parquet", log)
    settings = {
        "min_users": 2,
        "max_repeats": 3,
        "max_queries_per_visitor": 12,
        "max_visitors_per_query": 10,
    }
    reports = {}
    for engine in engines.ENGINES:
        reports[engine] = mine(
            str(log),
            str(tmp_path / engine),
            engine=engine_config(engine, tmp_path / f"scratch {engine}"),
            **settings,
        )
        assert os.listdir(tmp_path / f"scratch {engine}") == []
    assert reports["spark"] == reports["duckdb"]
    for name in TABLES:
        assert read_table(str(tmp_path / "duckdb"), name).num_rows > 0
    assert contents(tmp_path / "spark") == contents(tmp_path / "duckdb")


def test_a_missing_java_is_named(tmp_path, monkeypatch):
    pytest.importorskip("pyspark", reason="needs PySpark")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="Java 17.*JAVA_HOME"):
        engines.open_engine(engines.LogEngineConfig("spark"), str(tmp_path))


def test_a_missing_pyspark_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(UserError, match=r"onesug_jax\[spark\].*duckdb"):
        engines.open_engine(engines.LogEngineConfig("spark"), str(tmp_path))
