"""The page: one file, escaped texts, tables, and the chosen lists."""

import re

import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.evaluate import metrics, page
from onesug_jax.evaluate.evaluator import Evaluation, summarise


@pytest.fixture
def evaluation():
    lists = {
        "model": [["watch", "<script>alert(1)</script>"], ["tent"], ["tea"], ["lego"]],
        "most_popular": [["<script>alert(1)</script>", "watch"], ["tent"], ["coffee"], ["duplo"]],
        "sft": [["<script>alert(1)</script>", "watch"], ["tent"], ["tea"], ["duplo", "lego"]],
    }
    truths = ["watch", "tent", "coffee", "lego"]
    columns = {
        "row": [0, 1, 2, 3],
        "request_id": list("abcd"),
        "prefix": ["w", "", "c", "<b>"],
        "truth": truths,
        "level": ["order", "click", "click", "item_click"],
        "prefix_count": [20, 3, 0, 1],
        "history": [2, 0, 1, 1],
        "recent": [["<i>tea</i>"], [], ["mug"], []],
    }
    for name, found in lists.items():
        columns[f"list_{name}"] = found
        columns[f"rank_{name}"] = pa.array(
            [metrics.rank_of(truth, texts) for truth, texts in zip(truths, found, strict=True)],
            pa.int32(),
        )
    rows = pa.table(columns)
    return Evaluation(summarise(rows), rows)


def test_the_page_is_one_file_without_scripts_and_links(evaluation, tmp_path):
    (tmp_path / "by_slice.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "related.txt").write_text("'w'  <related>")
    text = open(page.write_page(evaluation, str(tmp_path)), encoding="utf-8").read()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;" in text and "&lt;related&gt;" in text
    assert not re.search(r"(src|href)=['\"](?!data:)", text) and "http" not in text
    assert text.count("data:image/png;base64,") == 1
    assert "(nothing)" not in text  # that request has no difference to show


def test_changes_gains_and_losses_are_shown(evaluation, tmp_path):
    text = open(page.write_page(evaluation, str(tmp_path)), encoding="utf-8").read()
    changed, rest = text.split("Changed by preference alignment")[1].split("helps most")
    best, worst = rest.split("does worse")
    assert "searched: lego" in changed and "searched: watch" in changed
    assert "searched: tent" not in text
    assert "searched: coffee" in worst and "searched: coffee" not in best
    assert "<li class=hit>watch</li>" in best
    assert "before: &lt;i&gt;tea&lt;/i&gt;, 1 more" in best and "before: mug<" in worst
    assert "; 1 earlier<" in changed


def test_tables_agree_with_the_metrics(evaluation, tmp_path):
    text = open(page.write_page(evaluation, str(tmp_path)), encoding="utf-8").read()
    model = re.search(r"<tr><td><b>model</b></td>(.*?)</tr>", text)[1]
    means = [float(cell) for cell in re.findall(r"<td>([\d.]+) ", model)]
    slices = evaluation.metrics["model"]
    wanted = [slices[s][m] for s in ("all", "order") for m in ("hr@16", "mrr@16")]
    assert means == [round(value, 2) for value in wanted]


def test_a_slice_is_green_only_where_the_model_leads(evaluation, tmp_path):
    text = open(page.write_page(evaluation, str(tmp_path)), encoding="utf-8").read()
    rows = dict(re.findall(r"<tr><td>([\w +-]+)</td>(.*?)</tr>", text.split("By slice")[1]))
    rivals = [evaluation.metrics[name] for name in ("most_popular", "sft")]
    for label, own in evaluation.metrics["model"].items():
        best = max(rival[label]["mrr@16"] or 0.0 for rival in rivals)
        row = rows[re.sub(r"(\d)_(\d)", r"\1-\2", label).replace("_", " ")]
        assert ("class=ours" in row) == ((own["mrr@16"] or 0.0) > best), label
    assert "class=ours" in rows["all"] and "class=ours" not in rows["click"]


def test_a_replay_has_its_freshness_and_the_share_of_the_way(evaluation, tmp_path):
    best = pa.array([1, 1, 1, 1], pa.int32())
    now = pa.array([0, 1, 1, 0], pa.int32())
    rows = evaluation.rows
    for name, ranks in (("best_possible", best), ("most_popular_now", now)):
        rows = rows.append_column(f"rank_{name}", ranks)
        rows = rows.append_column(f"list_{name}", rows["list_model"])
    scores = Evaluation(summarise(rows), rows, "1d")
    text = open(page.write_page(scores, str(tmp_path)), encoding="utf-8").read()
    assert "with the counts of 1d before it" in text
    shares = {
        name: re.findall(r"<td>(-?[\d.]+ %|-)</td>", row)
        for name, row in re.findall(r"<tr><td>(?:<b>)?([\w ()]+)(?:</b>)?</td>(.*?)</tr>", text)
        if "%" in row
    }
    assert shares["model"] == ["50 %", "100 %"], "3 of 4 right; as of now 2 of 4"
    assert shares["best possible"] == ["100 %", "100 %"]
    assert shares["most popular (as of now)"] == ["0 %", "0 %"]


def test_the_interval_is_that_of_resampled_requests():
    values = np.array([1.0] * 30 + [0.5] * 20 + [0.0] * 50)
    rng = np.random.default_rng(1)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    low, high = metrics.interval(values)
    assert (low, high) == metrics.interval(values[::-1])
    np.testing.assert_allclose((low, high), np.percentile(means, (2.5, 97.5)), atol=0.015)
    assert all(np.isnan(metrics.interval(np.array([]))))
