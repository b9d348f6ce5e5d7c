"""Calibration: bins by hand, a calibrated model, an overconfident model."""

import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.decode.suggester import Suggestion
from onesug_jax.evaluate import calibration, evaluator


def rows_of(scores, ranks):
    return pa.table({"scores_model": scores, "rank_model": pa.array(ranks, pa.int32())})


def test_every_suggestion_has_its_probability_and_hit():
    rows = rows_of([[0.0, -1.0], [], [-2.0]], [2, 0, 0])
    probabilities, hits = calibration.predicted(rows, "model")
    np.testing.assert_allclose(probabilities, np.exp([0.0, -1.0, -2.0]))
    assert hits.tolist() == [False, True, False]


def test_without_scores_there_is_no_plot(tmp_path):
    rows = pa.table({"rank_model": pa.array([1], pa.int32())})
    assert calibration.predicted(rows, "model") is None
    nothing = pa.array([None], pa.list_(pa.float32()))
    assert calibration.predicted(rows_of(nothing, [1]), "model") is None
    assert calibration.plot(rows, {"model": "model"}, str(tmp_path / "no.png")) is None


def test_bins_have_equal_sizes():
    probabilities, hits = np.array([0.1, 0.2, 0.7, 0.8]), np.array([False, True, True, True])
    table = calibration.bins(probabilities, hits, count=2)
    np.testing.assert_allclose(table, [[0.15, 0.5, 2], [0.75, 1.0, 2]])
    assert calibration.error(probabilities, hits, count=2) == pytest.approx((0.35 + 0.25) / 2)
    # Equal probabilities make one bin.
    np.testing.assert_allclose(
        calibration.bins(np.full(9, 0.5), np.arange(9) < 3), [[0.5, 1 / 3, 9]]
    )


def test_the_error_is_small_for_a_calibrated_and_large_for_an_overconfident_model():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.6, 20_000)
    hits = rng.uniform(size=len(truth)) < truth
    assert calibration.error(truth, hits) < 0.02
    assert calibration.error(np.sqrt(truth), hits) > 0.2


def test_only_suggestions_have_scores(tmp_path):
    row = {
        "request_id": "r",
        "prefix": "te",
        "query": "tent",
        "profile": [],
        "recent": [],
        "recent_minutes": [],
        "clicked_items": [],
        "ordered_items": [],
    }
    suggesters = {
        "model": lambda requests: (
            [[Suggestion("tea", -1.5), Suggestion("tent", -0.5)]] * len(requests)
        ),
        "most_popular": lambda requests: [["tent"]] * len(requests),
    }
    batch = pa.RecordBatch.from_pylist([row])
    rows = evaluator.score_rows([batch], suggesters, prefix_counts={}, k=1, progress=False)
    assert rows["scores_model"].to_pylist() == [[-1.5]]
    assert rows["scores_most_popular"].to_pylist() == [None]
    assert rows["rank_most_popular"].to_pylist() == [1]
    path = str(tmp_path / "calibration.png")
    assert calibration.plot(rows, {"model": "model", "most_popular": "most popular"}, path) == path
