"""The report: stored metrics, plots, the headline and other tables."""

import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import headline, report
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
    evaluation, plots = Evaluation(make_metrics(), rows), ("by_prefix_length.png", "by_slice.png")
    report.write_report(evaluation, folder)
    assert set(os.listdir(folder)) == {"metrics.json", "lists.parquet", *plots}
    curves = {"pretrain": str(curve), "rwr": str(tmp_path / "absent.jsonl")}
    report.write_report(evaluation, folder, learning_curves=curves)
    assert len(os.listdir(folder)) == 5
    stored = report.read_metrics(folder)
    assert stored == make_metrics() and stored["model"]["all"]["hr@16"] == 200 / 3
    assert pq.read_table(f"{folder}/lists.parquet").equals(rows)
    for name in (*plots, "learning_curve.png"):
        assert min(png_size(f"{folder}/{name}")) > 200


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.json.*run evaluate"):
        report.read_metrics(str(tmp_path))


def cells(table: str) -> dict[str, list[str]]:
    """First cell of each line -> its others; two or more spaces separate columns."""
    rows = [re.split(r" {2,}", line) for line in table.splitlines()]
    return {first: others for first, *others in rows}


def test_headline_of_a_text_model():
    found = cells(report.format_headline(make_metrics()))
    assert found["in per cent"] == ["HR@16", "MRR@16", "orders HR@16", "orders MRR@16"]
    assert list(found)[2:] == ["most popular", "model", "requests"]
    assert found["model"] == ["66.67", "33.33"] * 2 and found["most popular"][1] == "26.67"
    assert found["requests"] == ["1,234", "1,234"]


def replayed_metrics() -> dict:
    """Metrics of a replay on a simulated log: the model is halfway from 40 to 80."""
    values = {"model": 60.0, "searches_0.1d": 30.0, "most_popular": 20.0, "sft": 50.0}
    values |= {"searches_3d": 45.0, "searches_0.708d": 44.0, "most_popular_now": 40.0}
    values |= {"best_possible": 80.0, "cascade": 55.0}
    slices = ("all", "order", "new_query")
    scores = {
        n: {s: {**dict.fromkeys(SCORES, v), "n": 9} for s in slices} for n, v in values.items()
    }
    scores["model"]["new_query"]["mrr@16"] = 0.0
    return scores


def test_headline_of_a_replay_goes_from_the_simplest_to_the_best_possible():
    metrics = replayed_metrics()
    found = cells(report.format_headline(metrics))
    assert list(found)[2:-1] == [
        *("most popular (frozen)", "most popular (as of now)"),
        *("best decayed count (half-life 3 d)", "cascade", "sft", "model", "best possible"),
    ]
    assert found["model"] == ["60.00", "60.00", "50"] * 2
    assert found["most popular (frozen)"][2] == "-50" and found["best possible"][2] == "100"
    metrics["searches_0.708d"]["all"]["mrr@16"] = 46.0
    assert "best decayed count (half-life 17 h)" in report.format_headline(metrics)
    assert "wrote" not in report.format_headline(metrics)
    metrics["model"]["all"] |= {"written": 12.34, "written_plausible": 98.0}
    assert report.format_headline(metrics).splitlines()[-1] == (
        "12.3 % of the lists contain a query that the model wrote, and 98.0 % of these queries "
        "consist of the shop's words"
    )


def test_the_share_of_queries_among_the_candidates():
    metrics = replayed_metrics()
    assert "candidates" not in report.format_headline(metrics) + report.format_slices(metrics)
    for scores in metrics.values():
        for slice_, recall in (("all", 93.21), ("order", 95.0), ("new_query", 0.0)):
            scores[slice_]["recall"] = recall
    found = cells(report.format_slices(metrics))
    assert found["MRR@16"][-2:] == ["in candidates", "requests"]
    assert found["all"][-2:] == ["93.21", "9"] and found["new_query"][-2:] == ["0.00", "9"]
    assert report.format_headline(metrics).splitlines()[-1] == (
        "in 93.2 % of the searches the query was among the candidates"
    )


def test_the_model_leads_if_it_is_ahead_of_every_rival_except_the_oracle():
    metrics = replayed_metrics()
    names = list(headline.lines(metrics))
    assert headline.leads(metrics, "all", "mrr@16", names)
    assert not headline.leads(metrics, "new_query", "mrr@16", names)
    metrics["cascade"]["all"]["mrr@16"] = 60.0
    assert not headline.leads(metrics, "all", "mrr@16", names)


def test_headline_without_any_order():
    metrics = make_metrics()
    for name in metrics:
        metrics[name]["order"] = {**EMPTY, "n": 0}
    found = cells(report.format_headline(metrics))
    assert found["model"][2:] == ["-", "-"] and found["requests"] == ["1,234", "0"]


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


def test_related_queries_are_shown_for_frequent_rare_and_unseen_prefixes(tmp_path):
    rows = pa.table(
        {"prefix": ["a", "b", "a", "c", "", "d"], "prefix_count": [10, 3, 10, 0, 9, 99]}
    )
    groups = report.example_prefixes(rows, frequent=10, each=1)
    assert groups == {"frequent": ["a"], "rare": ["b"], "unseen": ["c"]}
    found = {name: {prefixes[0]: [prefixes[0] + "x"]} for name, prefixes in groups.items()}
    found["unseen"]["c"] = []
    text = open(report.write_related(found, str(tmp_path)), encoding="utf-8").read()
    assert "ax" in text and "bx" in text and "(none)" in text
