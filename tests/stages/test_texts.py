"""The stage examples on the last days of a log, as in an update."""

import shutil

import numpy as np

from onesug_jax import main
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.tasks.item_examples import ItemExamples
from tests.test_pipeline import rows_of


def test_examples_of_the_last_days_are_those_of_the_whole_log(small_run, tmp_path):
    work = shutil.copytree(small_run, tmp_path / "work")
    flags = [f"--gin.WORK_DIR={work}", "--gin.examples.days=2.0", "--restart"]
    assert main.main(["examples", *flags]) == 0
    times = np.array([row["timestamp_ms"] for row in rows_of(work, "log", "train")])
    for split, least in (("train", times.max() - 2 * DAY_MS), ("dev", 0)):
        few, all_ = (ItemExamples(str(home / "examples"), split) for home in (work, small_run))
        first = len(all_) - len(few)
        assert len(few) and (split == "train") == (first > 0)
        if split == "train":
            assert times[few.column("row")].min() > least
            assert times[all_.column("row")][:first].max() <= least
        (one,), (other,) = (
            list(each.blocks(start, names=each.shapes)) for each, start in ((few, 0), (all_, first))
        )
        for name in one:
            longer = other[name] if one[name].ndim < 2 else other[name][:, : one[name].shape[1]]
            np.testing.assert_array_equal(one[name], longer, err_msg=name)
    counts = [home / "examples" / "asof" / "asof.npz" for home in (work, small_run)]
    assert counts[0].read_bytes() == counts[1].read_bytes()
