"""Comparison of runs: rows, seeds, intervals, paired differences, the plot."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import report, runs
from onesug_jax.evaluate.evaluator import SliceSpec


def run_of(ranks, truth="q", rivals=(), rival_costs=None, **fields):
    """A run whose slices each have all requests; every fourth request has an order."""
    count = len(ranks)
    columns = {
        "request_id": [f"r{i}" for i in range(count)],
        "truth": [truth] * count,
        "level": ["order" if i % 4 == 0 else "click" for i in range(count)],
        "rank_model": pa.array(ranks, pa.int32()),
    }
    columns |= {f"rank_{rival}": pa.array([2] * count, pa.int32()) for rival in rivals}
    scores = {}
    for name in ("model", *rivals):
        gains = np.array(
            [100 / rank if rank else 0.0 for rank in columns[f"rank_{name}"].to_pylist()]
        )
        values = {"hr@16": 100.0, "mrr@16": float(gains.mean()), "n": count}
        scores[name] = dict.fromkeys(("all", "order", "frequent", "rare"), values)
    return runs.Run(scores, pa.table(columns), rivals=rival_costs or {}, **fields)


def rows_and_orders(**named):
    first = next(iter(named.values()))[0]
    return runs.rows_of(named), runs.order_requests(first.lists)


def test_a_clear_gain_is_more_than_chance():
    rows, orders = rows_and_orders(old=[run_of([2] * 400)], new=[run_of([1] * 100 + [2] * 300)])
    lead = runs.ahead(rows[1], rows[0], orders)
    assert lead["all"][0] == lead["order"][0] == pytest.approx(12.5)
    assert 8 < lead["all"][1] < 12.5 < lead["all"][2] < 17
    lines = runs.format_ahead(rows, rows[0], orders).splitlines()
    assert lines[0].startswith("MRR@16 ahead of old")
    assert lines[2].startswith("old") and lines[2].count("within chance") == 2
    assert "+12.50" in lines[3] and lines[3].count("more than chance") == 2


def test_a_run_can_have_the_name_of_a_rival():
    """`compare runs/cascade runs/full`, where the reports have a rival of that name."""
    rows, orders = rows_and_orders(
        cascade=[run_of([4] * 8, rivals=["cascade"])], full=[run_of([1] * 8)]
    )
    assert [row.name for row in rows] == ["cascade (rival)", "cascade", "full"]
    assert runs.ahead(rows[2], rows[-2], orders)["all"][0] == pytest.approx(75.0)


def test_intervals_of_hits_are_over_requests_and_seeds():
    hit, missed = run_of([1] * 100), run_of([1] * 50 + [0] * 50)
    rows, orders = rows_and_orders(one=[hit, missed])
    assert rows[0].hits.tolist() == [100.0] * 50 + [50.0] * 50
    lines = runs.format_rows(rows, orders).splitlines()
    assert " HR 95 %" in lines[0] and "order HR 95 %" in lines[0]


def test_noise_is_within_chance():
    random = np.random.default_rng(0)
    one, other = (run_of(random.integers(0, 17, 500).tolist()) for _ in range(2))
    rows, orders = rows_and_orders(one=[one], other=[other])
    assert runs.format_ahead(rows, rows[0], orders).splitlines()[3].count("within chance") == 2


def test_a_rank_beyond_k_is_not_a_hit():
    rows, orders = rows_and_orders(one=[run_of([1, 20])], other=[run_of([1, 0])])
    assert runs.ahead(rows[1], rows[0], orders)["all"] == (0.0, 0.0, 0.0)


def test_rivals_come_first_and_a_line_ends_with_its_costs():
    rows, orders = rows_and_orders(
        full=[
            run_of([1] * 8, rivals=["most_popular", "cascade"], minutes=12.0, parameters=1600000)
        ],
        less=[run_of([4] * 8, rivals=["most_popular"])],
    )
    lines = runs.format_rows(rows, orders).splitlines()
    names = ["most popular", "cascade", "full", "less", "requests"]
    assert [line.split("  ")[0] for line in lines[2:]] == names
    assert lines[4].split()[1:3] == ["100.00", "100.00"] and lines[5].split()[2] == "25.00"
    assert lines[4].endswith("12.0   1,600,000") and lines[5].endswith("-")
    assert "25.0 to 25.0" in lines[5]
    # No run has the slice "unseen".
    assert lines[6].split()[1:] == ["8"] * 6 + ["-"]


def test_seeds_share_a_row(tmp_path):
    folders = [str(tmp_path / seed / "full") for seed in ("seed_0", "seed_1")]
    assert runs.names_of(folders) == {"full": folders}
    rows, orders = rows_and_orders(full=[run_of([1] * 4), run_of([2] * 4)])
    assert rows[0].scores["all"]["mrr@16"] == 75 and rows[0].gains.tolist() == [75.0] * 4
    assert "2: 50.00 to 100.00" in runs.format_rows(rows, orders)


def test_a_rival_is_the_mean_of_the_seeds_that_have_it():
    def seed(minutes):
        costs = {"cascade": (minutes, 9000)}
        return run_of([1] * 4, rivals=["most_popular", "cascade"], rival_costs=costs)

    without = run_of([1] * 4, rivals=["most_popular"])
    rows, orders = rows_and_orders(full=[seed(4.0), without, seed(6.0)])
    lines = runs.format_rows(rows, orders).splitlines()
    costs = {line.split("  ")[0]: line.split()[-2:] for line in lines}
    assert costs["cascade"] == ["5.0", "9,000"] and costs["most popular"] == ["-", "-"]
    assert rows[0].seeds == rows[1].seeds == ()  # equal for every seed


def test_folders_are_named_by_their_last_part_or_the_whole_path():
    assert list(runs.names_of(["a/one", "b/two"])) == ["one", "two"]
    assert list(runs.names_of(["a/one", "b/one", "two"])) == ["a/one", "b/one", "two"]


def test_other_requests_are_not_compared(tmp_path):
    rows, orders = rows_and_orders(one=[run_of([1, 2])], other=[run_of([1, 2, 3], truth="p")])
    assert runs.ahead(rows[1], rows[0], orders) is None
    assert "not the same requests" in runs.format_ahead(rows, rows[0], orders)


def test_a_run_is_one_report_of_a_work_directory(tmp_path):
    with pytest.raises(UserError, match=r"lists.parquet.*run evaluate first"):
        runs.read_run(str(tmp_path))
    (tmp_path / "report" / "monday").mkdir(parents=True)
    one = run_of([1], rivals=["most_popular"])
    pq.write_table(one.lists, tmp_path / "report" / "monday" / "lists.parquet")
    with pytest.raises(UserError, match=r"metrics.json.*run evaluate"):
        runs.read_run(str(tmp_path), "monday")
    (tmp_path / "report" / "monday" / "metrics.json").write_text('{"model": {}}')
    assert runs.read_run(str(tmp_path), "monday", minutes=3.0).minutes == 3.0
    assert runs.read_run(str(tmp_path)).lists.equals(one.lists), "there is no other"
    with pytest.raises(UserError, match=r"tuesday.*--report"):
        runs.read_run(str(tmp_path), "tuesday")
    shutil.copytree(tmp_path / "report" / "monday", tmp_path / "report" / "dev")
    (tmp_path / "report" / "dev" / "metrics.json").write_text('{"model": {"all": {}}}')
    assert runs.read_run(str(tmp_path)).metrics == {"model": {"all": {}}}


def test_lists_are_reordered_by_shares_of_orders():
    lists = {"a": [["p", "q", "r"], [-0.1, -0.3, -3.0]], "b": [["q", "s"], [-0.2, -0.2]]}
    shares = {"p": -1.0, "q": 0.5, "r": 2.0}
    rows = pa.table(
        {
            "request_id": list(lists),
            "prefix": list(lists),
            "truth": ["q", "s"],
            "level": ["order", "click"],
            "prefix_count": [3, 0],
            "history": [1, 0],
            "list_sft": [texts for texts, _ in lists.values()],
            "scores_sft": [scores for _, scores in lists.values()],
        }
    )

    def weighed(rows, kappa):
        shares_of = lambda queries: np.array([shares.get(text, 0.0) for text in queries])  # noqa: E731
        run = runs.by_orders(runs.Run({}, rows), shares_of, kappa, slices=SliceSpec())
        assert run.metrics["model"]["order"]["n"] == run.metrics["model"]["unseen"]["n"] == 1
        return run.lists["rank_model"].to_pylist(), run.lists["list_model"].to_pylist()[0]

    assert weighed(rows, 0.0) == ([2, 2], ["p", "q", "r"])
    assert weighed(rows, 0.2) == ([1, 2], ["q", "p", "r"])  # -0.2, -0.3, -2.6
    assert weighed(rows, 2.0) == ([2, 2], ["r", "q", "p"])  # 1, 0.7, -2.1
    own = rows.rename_columns([name.replace("sft", "model") for name in rows.column_names])
    assert weighed(own, 0.2) == weighed(rows, 0.2)
    none = pa.array([None, None], pa.list_(pa.float32()))
    unscored = own.drop_columns("scores_model").append_column("scores_model", none)
    with pytest.raises(UserError, match="lists of model have no scores"):
        weighed(unscored, 1.0)


def test_the_frontier(monkeypatch, tmp_path):
    """Rows far away are named below the plot; weighed lists are one line that starts at SFT."""
    figures, save = [], runs.save_figure
    monkeypatch.setattr(runs, "save_figure", lambda f, path: figures.append(f) or save(f, path))
    one, near, far = [1, 1] * 8, [1, 1] * 7 + [1, 2], [4, 4] * 8
    rows, orders = rows_and_orders(one=[run_of(one)], sft=[run_of(near)], far=[run_of(far)])
    path = str(tmp_path / "frontier.png")

    def shown(*args):
        assert runs.plot_frontier(*args) == path
        assert open(path, "rb").read(4) == b"\x89PNG"
        (axis,) = figures[-1].axes
        return axis, [text.get_text() for text in axis.get_legend().get_texts()]

    axis, names = shown(rows, rows[0], orders, path)
    assert axis.get_xlabel().endswith("not drawn: far (-75.0, -75.0)") and names == ["one", "sft"]
    axis, names = shown([rows[0], rows[2]], rows[0], orders, path)
    assert "not drawn" not in axis.get_xlabel() and names == ["one", "far"], "all rows are far away"

    weighed = [dataclasses.replace(rows[1], name=name) for name in ("sft, a", "sft, b")]
    kappas = {"sft, b": 0.5, "sft, a": 2.0}
    axis, names = shown([*rows[:2], *weighed], rows[0], orders, path, kappas)
    assert names == ["one", "SFT, weighed by orders^kappa"]
    assert [text.get_text() for text in axis.texts] == ["0", "0.5", "2"]


def test_columns_are_as_wide_as_their_widest():
    assert report.table([["a", "bb"], ["长", "1"]]).splitlines() == ["a   bb", "--  --", "长   1"]
