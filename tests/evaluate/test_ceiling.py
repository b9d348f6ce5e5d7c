"""The file of the ceiling, and the share of the way."""

import math

import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate.ceiling import available, load, share_of_the_way
from onesug_jax.logs.simulate import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(str(folder), requests=2000, days=8, test_days=1)
    return folder


def test_exactly_the_dev_and_test_rows_have_a_list(folder):
    assert available(str(folder))
    lists, for_orders = load(str(folder))
    ids = [
        request_id
        for name in ("dev", "test")
        for request_id in pq.read_table(folder / f"{name}.parquet")["request_id"].to_pylist()
    ]
    assert set(lists) == set(for_orders) == set(ids)
    for texts in (*lists.values(), *for_orders.values()):
        assert 1 <= len(texts) <= 16 and len(set(texts)) == len(texts)


def test_a_missing_or_broken_file_is_named(tmp_path):
    assert not available(str(tmp_path))
    with pytest.raises(UserError, match="_ceiling.parquet.*no such file.*run simulate"):
        load(str(tmp_path))
    (tmp_path / "_ceiling.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="_ceiling.parquet.*simulate again"):
        load(str(tmp_path))


def test_share_of_the_way():
    assert share_of_the_way(60.0, 50.0, 75.0) == pytest.approx(0.4)
    assert share_of_the_way(75.0, 50.0, 75.0) == 1.0
    assert share_of_the_way(45.0, 50.0, 75.0) < 0
    assert math.isnan(share_of_the_way(60.0, 50.0, 50.0))
