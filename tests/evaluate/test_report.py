"""The report: stored numbers are unrounded, tables line up, plots are there, lists read well."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import report
from onesug_jax.evaluate.evaluator import Evaluation

SCORES = {"hr@16": 200 / 3, "mrr@16": 100 / 3, "ndcg@16": 40.0, "success@10": 50.0, "mrr@10": 30.0}
EMPTY = dict.fromkeys(SCORES)


def make_metrics() -> dict:
    slices = ("all", "order", "item_click", "click", "prefix_1", "prefix_8+", "rare", "no_history")
    model = {label: {**SCORES, "n": 1234} for label in slices}
    popular = {
        label: {name: value * 0.8 for name, value in SCORES.items()} | {"n": 1234}
        for label in slices
    }
    for metrics in (model, popular):
        metrics["click"] = {**EMPTY, "n": 0}
    return {"model": model, "most_popular": popular}


def png_size(path: str) -> tuple[int, int]:
    data = open(path, "rb").read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_report_folder(tmp_path):
    rows = pa.table({"row": [0, 1], "list_model": [["a"], []]})
    curve = tmp_path / "metrics.jsonl"
    curve.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n{"step": 3, "lo')
    folder = str(tmp_path / "report")
    written = report.write_report(
        Evaluation(make_metrics(), rows),
        folder,
        learning_curves={"pretrain": str(curve), "rwr": str(tmp_path / "absent.jsonl")},
    )
    assert set(written) == {"metrics", "lists", "by_prefix_length", "by_slice", "learning_curve"}
    stored = json.load(open(written["metrics"]))
    assert stored == make_metrics() == report.read_metrics(folder)
    assert stored["model"]["all"]["hr@16"] == 200 / 3
    assert pq.read_table(written["lists"]).equals(rows)
    for name in ("by_prefix_length", "by_slice", "learning_curve"):
        assert min(png_size(written[name])) > 200


def test_no_curve_no_plot_of_it(tmp_path):
    written = report.write_report(Evaluation(make_metrics(), pa.table({"row": [0]})), str(tmp_path))
    assert "learning_curve" not in written


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.json.*run evaluate"):
        report.read_metrics(str(tmp_path))


def test_headline_shows_both_and_their_ratio():
    lines = report.format_headline(make_metrics()).splitlines()
    assert lines[0].split() == ["metric", "most", "popular", "model", "ratio", "requests"]
    assert lines[2].split() == ["all", "searches", "HR@16", "53.33", "66.67", "x1.250", "1,234"]
    assert lines[3].split()[2:] == ["MRR@16", "26.67", "33.33", "x1.250", "1,234"]
    assert lines[4].startswith("with an order")
    assert len({len(line) for line in lines}) == 1


def test_two_runs_and_how_far_the_second_is_ahead():
    one, other = make_metrics(), make_metrics()
    other["model"]["all"] |= {"hr@16": 70.0, "mrr@16": 30.0}
    other["model"]["rare"]["n"] = 1000
    lines = report.format_difference({"a": one, "b": other}).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert lines[0].split() == "in per cent HR@16 a b ahead MRR@16 a b ahead requests".split()
    assert cells["all"] == ["66.67", "70.00", "+3.33", "33.33", "30.00", "-3.33", "1,234"]
    assert cells["order"][2] == "+0.00"
    assert cells["click"] == ["-"] * 6 + ["0"], "no request of this kind"
    assert cells["rare"][2] == cells["rare"][5] == "-", "not the same requests"
    assert cells["rare"][6:] == ["1,234", "and", "1,000"]


def test_headline_without_any_order():
    metrics = make_metrics()
    for name in metrics:
        metrics[name]["order"] = {**EMPTY, "n": 0}
    assert report.format_headline(metrics).splitlines()[4].split()[3:] == [
        "HR@16",
        "-",
        "-",
        "-",
        "0",
    ]


def test_slice_table_has_every_slice():
    lines = report.format_slices(make_metrics(), metric="hr@16").splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(make_metrics()["model"])
    assert lines[3].split() == ["click", "-", "-", "0"]


def test_learning_curve_takes_the_last_report_of_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    entries = [{"step": 2, "loss": 4.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": 3.0}]
    entries += [{"step": 3, "dev_mrr": 9.0}, {"step": 4, "loss": float("nan")}]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "[1]\nnot json\n")
    assert report.read_curve(str(path)) == [(1, 5.0), (2, 3.0)]


def test_lists_stand_side_by_side_also_with_wide_characters():
    text = report.format_lists(
        [
            {
                "prefix": "手",
                "history": ["手机壳", "平板"],
                "lists": {
                    "model": [("手机壳", -0.5), ("手表", -1.25)],
                    "most_popular": ["手套", "手机"],
                },
            },
            {"prefix": "xq", "lists": {"model": []}},
        ],
        top=2,
    )
    first, second = text.split("\n\n")
    lines = first.splitlines()
    assert lines[0] == "typed: '手'   history: 手机壳, 平板"
    assert lines[3].split() == ["1", "手机壳", "-0.50", "手套"]
    ends = [
        report._width(line[: line.index(word)])
        for line, word in ((lines[3], "手套"), (lines[4], "手机"))
    ]
    assert ends[0] == ends[1] == lines[1].index("most popular")
    assert "history: none" in second and "(no suggestion)" in second


def test_related_queries_are_shown_for_known_rare_and_unseen_prefixes(tmp_path):
    rows = pa.table(
        {"prefix": ["a", "b", "a", "c", "", "d"], "prefix_count": [10, 3, 10, 0, 9, 99]}
    )
    groups = report.example_prefixes(rows, frequent=10, each=1)
    assert groups == {"frequent": ["a"], "rare": ["b"], "unseen": ["c"]}
    found = {name: {prefixes[0]: [prefixes[0] + "x"]} for name, prefixes in groups.items()}
    found["unseen"]["c"] = []
    text = open(report.write_related(found, str(tmp_path)), encoding="utf-8").read()
    assert "ax" in text and "bx" in text and "(none)" in text
