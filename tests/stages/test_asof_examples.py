"""Examples in blocks of time: any engine and any number of workers write the same bytes."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.logs.workers import results
from onesug_jax.stages.asof_examples import Walk, write_blocks
from onesug_jax.stages.prefer_candidates import Rows, count_levels
from onesug_jax.tasks import item_examples
from onesug_jax.tasks.features import FeatureSpec
from onesug_jax.tasks.shards import META_FILE

SPLITS = ("train", "dev")


@pytest.fixture
def begun(small_run, tmp_path):
    """The walk over the small shop's log into a folder, and the state before it."""

    def begin(name):
        queries = CompletionIndex.load(str(small_run / "mined")).queries
        walk = Walk(
            folder=str(tmp_path / name),
            files=tuple(str(small_run / "log" / f"{split}.parquet") for split in SPLITS),
            splits=SPLITS,
            profile=(),
            vocabulary=str(small_run / "vocab"),
            spec=FeatureSpec(),
            index=str(small_run / "index"),
            indexed=len(queries),
            after_ms=-1.0,
        )
        return walk, AsOf(queries, AsOfConfig(candidates=8, around=2, min_users=2), spare=100)

    return begin


@pytest.fixture
def written(begun):
    """Writes the examples; returns their folder, the final state and the number of blocks."""

    def write(name, engine, **settings):
        walk, state = begun(name)
        parts = write_blocks(walk, state, engine, **settings)
        assert not any(os.path.exists(os.path.join(part, "state")) for part in parts)
        item_examples.join(walk.folder, parts, SPLITS)
        return pathlib.Path(walk.folder), state, len(parts)

    return write


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    task = folder / item_examples.TASK
    return {str(p.relative_to(task)): p.read_bytes() for p in task.rglob("*") if p.is_file()}


@pytest.mark.long
def test_blocks_in_workers_hold_the_rows_of_one_walk(written):
    single, state, count = written("single", LogEngineConfig())
    parallel, other_state, several = written("parallel", LogEngineConfig(workers=2), least_rows=300)
    assert count == 1 and several > 3
    for split in SPLITS:
        one, other = (item_examples.ItemExamples(str(path), split) for path in (single, parallel))
        assert len(one) == len(other) > 0
        rows = range(len(one))
        assert one.shards.read(rows) == other.shards.read(rows)
        for name in item_examples.COLUMNS:
            assert np.array_equal(one.column(name), other.column(name))
        assert one.meta | {"fingerprint": ""} == other.meta | {"fingerprint": ""}  # of the parts
    assert np.array_equal(state.searches.stored, other_state.searches.stored)
    assert state.latest_ms == other_state.latest_ms


@pytest.mark.long
def test_a_killed_run_reuses_its_finished_blocks(begun, written):
    engine, size = LogEngineConfig(workers=1), {"least_rows": 300}
    walk, state = begun("killed")
    metas = [pathlib.Path(p, "train", META_FILE) for p in write_blocks(walk, state, engine, **size)]
    metas[1].unlink()
    before = [meta.stat().st_mtime_ns for meta in metas if meta.exists()]
    walk, state = begun("killed")
    parts = write_blocks(walk, state, engine, **size)
    assert metas[1].exists()
    assert [m.stat().st_mtime_ns for m in metas if m != metas[1]] == before
    item_examples.join(walk.folder, parts, SPLITS)
    os.remove(os.path.join(walk.folder, item_examples.TASK, "train", META_FILE))
    item_examples.join(walk.folder, parts, SPLITS)  # after a kill during the first join
    expected, expected_state, _ = written("expected", engine, **size)
    assert bytes_of(pathlib.Path(walk.folder)) == bytes_of(expected)
    assert np.array_equal(state.searches.stored, expected_state.searches.stored)


@pytest.mark.long
def test_spark_writes_the_same_bytes(written, spark, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
    local = LogEngineConfig(workers=1)
    cluster = dataclasses.replace(
        local, name="spark", memory_limit="1GB", spark_master="local[2]", workers=2
    )
    one, *_ = written("local", local, least_rows=600)
    other, *_ = written("cluster", cluster, least_rows=600)
    assert bytes_of(one) == bytes_of(other)
    assert np.array_equal(levels(one, 600, cluster), levels(one, 10**6, local))


def levels(folder, block, engine):
    """The counts of candidates by level, with `block` rows per task."""
    total = len(item_examples.ItemExamples(str(folder), "train"))
    firsts = range(0, total, block)
    rows = [Rows(str(folder), first, min(first + block, total), 20_000) for first in firsts]
    counts = list(results(engine, str(folder), count_levels, rows))
    assert len(counts) == len(firsts)
    return sum(counts)


@pytest.mark.long
def test_levels_counted_in_workers_are_those_of_a_plain_loop(written):
    folder, *_ = written("examples", LogEngineConfig())
    expected = np.zeros((6, 20_000), int)
    for block in item_examples.ItemExamples(str(folder), "train").blocks(
        names=("candidates", "candidate_levels")
    ):
        for numbers, own in zip(block["candidates"], block["candidate_levels"], strict=True):
            for number, level in zip(numbers.tolist(), own.tolist(), strict=True):
                expected[level, number] += number > 0
    assert expected.sum() > 1000
    assert np.array_equal(levels(folder, 300, LogEngineConfig(workers=2)), expected)


def test_a_worker_that_the_system_kills_is_reported_with_a_way_out(tmp_path):
    with pytest.raises(UserError, match="memory ran out.*LogEngineConfig.workers=N"):
        list(results(LogEngineConfig(workers=1), str(tmp_path), os._exit, [1, 1, 1]))
