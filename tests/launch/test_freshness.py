"""MRR against freshness: one line for each rival, with the best half-life at each freshness."""

import importlib.util
import math

import pytest


@pytest.fixture(scope="module")
def freshness(project_root):
    spec = importlib.util.spec_from_file_location("f", project_root / "launch" / "freshness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(**values):
    return {name: {"all": {"mrr@16": value}} for name, value in values.items()}


def test_the_best_half_life_of_each_freshness_is_one_line(freshness):
    both = {"most_popular": 20.0, "searches_14d": 40.0}
    found = {
        "1m": metrics(**both, **{"searches_3d": 45.0, "model": 50.0, "most_popular_now": 30.0}),
        "inf": metrics(**both, **{"searches_3d": 35.0, "model": 41.0}),
    }
    lines = freshness.curves(found)
    assert lines["best decayed count"] == [45.0, 40.0] and lines["model"] == [50.0, 41.0]
    assert lines["most popular (as of now)"][0] == 30.0
    assert math.isnan(lines["most popular (as of now)"][1])
    table = freshness.format_curves(list(found), lines).splitlines()
    assert table[0].split()[-2:] == ["1m", "inf"] and "45.00" in "".join(table)


def test_the_plot_has_never_updated_last(freshness, tmp_path):
    path = freshness.plot(["1m", "3d", "inf"], {"model": [3.0, 2.0, 1.0]}, str(tmp_path / "f.png"))
    assert open(path, "rb").read().startswith(b"\x89PNG")


def test_an_invalid_freshness_is_named(freshness, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["freshness", "--work", "nowhere", "--freshness", "1m,soon"])
    assert freshness.run() == 2
    assert "'soon'" in capsys.readouterr().err
