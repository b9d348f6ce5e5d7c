"""Two runs request by request: the difference, its interval, and when there is none to give."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import paired


def lists(ranks, truth="q"):
    count = len(ranks)
    return pa.table(
        {
            "request_id": [f"r{i}" for i in range(count)],
            "truth": [truth] * count,
            "level": ["order" if i % 4 == 0 else "click" for i in range(count)],
            "rank_model": pa.array(ranks, pa.int32()),
        }
    )


def test_a_clear_gain_is_more_than_chance():
    one, other = lists([2] * 400), lists([1] * 100 + [2] * 300)
    found = paired.ahead(one, other)
    assert found["all"][0] == pytest.approx(12.5) and found["all"][3:] == (100, 400)
    assert found["order"][0] == pytest.approx(12.5) and found["order"][3:] == (25, 100)
    assert 8 < found["all"][1] < 12.5 < found["all"][2] < 17
    told = paired.format_ahead(found, ("old", "new"))
    assert "new +12.50 against old" in told and told.count("more than chance") == 2


def test_noise_is_within_chance():
    random = np.random.default_rng(0)
    one, other = (lists(random.integers(0, 17, 500).tolist()) for _ in range(2))
    told = paired.format_ahead(paired.ahead(one, other), ("old", "new"))
    assert told.splitlines()[0].count("within chance") == 1


def test_a_rank_beyond_k_is_no_hit():
    found = paired.ahead(lists([1, 20]), lists([1, 0]))
    assert found["all"][:4] == (0.0, 0.0, 0.0, 0)


def test_other_requests_are_not_compared(tmp_path):
    assert paired.ahead(lists([1, 2]), lists([1, 2], truth="p")) is None
    assert paired.ahead(lists([1, 2]), lists([1, 2, 3])) is None
    with pytest.raises(UserError, match="lists.parquet.*run evaluate"):
        paired.read_lists(str(tmp_path))
    pq.write_table(lists([1]), tmp_path / "lists.parquet")
    assert paired.read_lists(str(tmp_path)).num_rows == 1
