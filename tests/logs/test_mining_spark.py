"""Spark and DuckDB mine the same rows of a log, to the last digit and in the same order."""

import os
import sys

import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import engines
from onesug_jax.logs.mined import TABLES, read_table
from onesug_jax.logs.mining import mine
from onesug_jax.logs.simulate import simulate


@pytest.mark.long
def test_both_engines_write_the_same_rows(tmp_path, monkeypatch, spark):
    # Most code runs few times here, so Java need not optimise it.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
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
            engine=engines.LogEngineConfig(
                engine, "1GB", str(tmp_path / f"scratch {engine}"), "local[2]"
            ),
            **settings,
        )
        assert os.listdir(tmp_path / f"scratch {engine}") == []
    assert reports["spark"] == reports["duckdb"]
    for name in TABLES:
        one, other = (read_table(str(tmp_path / engine), name) for engine in engines.ENGINES)
        assert one.num_rows > 0
        assert one.equals(other), name
        for engine in engines.ENGINES:
            # The files have the same types too.
            written = pq.read_schema(tmp_path / engine / f"{name}.parquet")
            assert (written.names, written.types) == (TABLES[name].names, TABLES[name].types)


def test_a_missing_java_is_named(tmp_path, monkeypatch):
    pytest.importorskip("pyspark", reason="needs PySpark")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="Java 17.*JAVA_HOME"):
        engines.open_engine(engines.LogEngineConfig("spark"), str(tmp_path))


def test_a_missing_pyspark_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(UserError, match=r"onesug_jax\[spark\].*duckdb"):
        engines.open_engine(engines.LogEngineConfig("spark"), str(tmp_path))
