"""Drawn prefixes: beginnings of the query, with the log's lengths, a function of the row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.tasks.prefixes import PrefixDraw

IDS = [f"r{n}" for n in range(4000)]
QUERY = "lego star wars set"


def draw(lengths, ids=IDS, prefix="lego st", query=QUERY):
    return PrefixDraw(np.array(lengths))(ids, [prefix] * len(ids), [query] * len(ids))


def test_lengths_are_those_of_the_log():
    found = [len(prefix) for prefix in draw([1, 1, 1, 5])]
    assert set(found) == {1, 5}
    assert abs(np.mean(np.array(found) == 1) - 0.75) < 0.03


def test_every_prefix_begins_its_query():
    assert all(QUERY.startswith(prefix) for prefix in draw([0, 3, 9]))


def test_a_short_query_retains_its_own_prefix():
    assert draw([8], prefix="led", query="led") == ["led"] * len(IDS)


def test_the_draw_depends_only_on_the_row():
    lengths = list(range(1, 15))
    every = dict(zip(IDS, draw(lengths), strict=True))
    assert draw(lengths, ids=IDS[7:9]) == [every["r7"], every["r8"]]


def test_lengths_are_read_from_the_train_split(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"prefix": ["a", "auto", "汽车"]}), path)
    assert PrefixDraw.from_log(str(path))._lengths.tolist() == [1, 2, 4]
