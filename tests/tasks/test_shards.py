"""Records in shards: random access gives the written records; errors name damaged files."""

import json
import os

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.tasks.shards import Shards, Writer


def write(folder, count, **settings):
    records = [bytes([n % 251]) * (1 + n % 7) for n in range(count)]
    writer = Writer(str(folder), {"size": np.int16}, **settings)
    for start in range(0, count, 10):
        block = records[start : start + 10]
        writer.add(block, {"size": np.array([len(record) for record in block])})
    return records, writer.close()


@pytest.mark.parametrize("shard_bytes", [1, 64, 10_000])
def test_records_come_back_by_number(tmp_path, shard_bytes):
    records, written = write(tmp_path, 57, shard_bytes=shard_bytes)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert written["count"] == sum(counts.values()) == 57
    assert list(counts) == sorted(p.name for p in tmp_path.glob("part-*.array_record"))
    assert list(counts)[0] == f"part-00000-of-{len(counts):05}.array_record"
    sizes = [len(r) for r in records]
    for n, count in enumerate(list(counts.values())[:-1]):
        first = sum(list(counts.values())[:n])
        own = sizes[first : first + count]
        assert sum(own) >= shard_bytes > sum(own[:-1]), "a shard ends when it is full"
    shards = Shards(str(tmp_path), way_out="write them again")
    rows = np.random.default_rng(0).integers(0, 57, 200)
    assert shards.read(rows) == [records[row] for row in rows]
    assert [r for block in shards.scan(3, 50, 9) for r in block] == records[3:50]
    assert shards.column("size").tolist() == sizes and len(shards) == 57 and shards.all_open
    with pytest.raises(IndexError, match="found 5 to 57"):
        shards.read([57, 5])


def test_shards_beyond_the_limit_of_open_files_are_opened_again(tmp_path):
    records, _ = write(tmp_path, 40, shard_bytes=1)
    shards = Shards(str(tmp_path), way_out="")
    shards._max_open = 3
    rows = [*range(39, -1, -1), *range(40)]
    assert [shards.read([row])[0] for row in rows] == [records[row] for row in rows]
    assert shards.read(rows) == [records[row] for row in rows]
    assert not shards.all_open


def test_no_records_are_one_empty_shard(tmp_path):
    writer = Writer(str(tmp_path), {"size": np.int16})
    assert writer.close()["count"] == 0
    shards = Shards(str(tmp_path), way_out="")
    assert len(shards) == 0 and shards.read([]) == [] and not len(shards.column("size"))


def test_the_fingerprint_is_of_the_records(tmp_path):
    _, one = write(tmp_path / "one", 30)
    _, same = write(tmp_path / "same", 30, shard_bytes=9)
    _, other = write(tmp_path / "other", 31)
    assert one == same and one["fingerprint"] != other["fingerprint"]


def test_errors_name_the_damaged_file_and_the_way_out(tmp_path):
    with pytest.raises(UserError, match="counts.json: expected shards of examples, found no such"):
        Shards(str(tmp_path), way_out="write them")
    write(tmp_path, 20)
    (name,) = [p for p in os.listdir(tmp_path) if p.startswith("part")]
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=rf"{name}: the examples cannot be read .*; write again"):
        Shards(str(tmp_path), way_out="write again").read([3])
    np.save(tmp_path / "size.npy", np.zeros(3))
    with pytest.raises(UserError, match="size.npy: .*3 values for 20 records"):
        Shards(str(tmp_path), way_out="").column("size")
