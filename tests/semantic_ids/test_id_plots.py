"""The plots' numbers: the plane of the map, the evaluations, the curves and the points."""

import json

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids import id_plots
from onesug_jax.semantic_ids.ids import SemanticIds


def test_the_plane_is_that_of_the_centres():
    centres = np.array([[3.0, 0, 0, 1], [-3, 0, 0, 1], [0, 0, 1, 1], [0, 0, -1, 1]])
    vectors = np.array([[2.0, 9, 0.5, 1], [-1, -9, 0, 7]])
    np.testing.assert_allclose(id_plots.project(vectors, centres), [[2, 0.5], [-1, 0]], atol=1e-9)


@pytest.mark.parametrize("centres", [1, 2])
def test_few_centres_give_zero_coordinates(centres):
    rng = np.random.default_rng(0)
    points = id_plots.project(rng.standard_normal((5, 4)), rng.standard_normal((centres, 4)))
    assert [bool(column.any()) for column in points.T] == [centres > 1, False]


def test_evaluations_are_read_by_step_and_the_last_of_a_step_counts(tmp_path):
    def row(step, value, kind="evaluate"):
        return json.dumps({"step": step, "kind": kind, "reconstruction": value})

    lines = [row(10, 0.5), row(5, 0.9), row(7, 0.1, "train"), row(10, 0.4), row(9, None), '{"st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = id_plots.read_evaluations(str(tmp_path / "metrics.jsonl"))
    assert [(r["step"], r["reconstruction"]) for r in found] == [(5, 0.9), (10, 0.4)]
    assert id_plots.read_evaluations(str(tmp_path / "none.jsonl")) == []


def drawn(monkeypatch):
    """The saved figures by file name."""
    figures = {}
    real = id_plots.save_figure

    def save(figure, path):
        figures[path.rsplit("/", 1)[-1]] = figure
        return real(figure, path)

    monkeypatch.setattr(id_plots, "save_figure", save)
    return figures


@pytest.mark.parametrize("count", [300, 1])
def test_plots_show_the_counts(tmp_path, monkeypatch, count):
    figures = drawn(monkeypatch)
    rng = np.random.default_rng(1)
    ids = (rng.integers(12, size=(count, 2)) * [1, 0]).astype(np.uint16)
    embeddings = rng.standard_normal((count, 6)).astype(np.float32)
    SemanticIds.build(ids, np.ones(count), codes=16).save(str(tmp_path))
    metrics = {"kind": "evaluate", "reconstruction": 0.5, "perplexity_1": 9.0, "perplexity_2": 1.0}
    rows = [json.dumps({**metrics, "step": step}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    written = id_plots.write_plots(str(tmp_path), embeddings, sample=200)
    assert sorted(written) == ["code_usage", "id_learning_curve", "id_map"]
    for path in written.values():
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    usage = figures["code_usage.png"].axes
    counts = sorted(np.bincount(ids[:, 0])[np.bincount(ids[:, 0]) > 0].tolist(), reverse=True)
    assert usage[0].lines[0].get_ydata().tolist() == counts
    assert usage[1].get_title() == "level 2\n6.2% used, perplexity 1"
    curves = figures["id_learning_curve.png"].axes
    assert curves[0].lines[0].get_ydata().tolist() == [0.5, 0.5]
    assert [line.get_ydata()[0] for line in curves[1].lines] == [9.0, 1.0]
    shown = figures["id_map.png"].axes[0].collections
    assert sum(len(points.get_offsets()) for points in shown) == min(count, 200)


def test_without_training_there_is_no_curve_and_missing_ids_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        id_plots.write_plots(str(tmp_path), np.zeros((3, 2), np.float32))
    SemanticIds.build(np.zeros((3, 1), np.uint16), np.ones(3), codes=2).save(str(tmp_path))
    written = id_plots.write_plots(str(tmp_path), np.eye(3, dtype=np.float32))
    assert sorted(written) == ["code_usage", "id_map"]
