"""Comparison of runs: a table with a row for each run, and the lead of each over the first.

A row may have several runs, the seeds of one configuration; its figures are means over them, and
each request counts with the mean of its reciprocal ranks. Most lists of two runs agree, so their
difference varies far less than either mean. Intervals of a difference resample the differences
of the requests (paired bootstrap).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.evaluate import evaluator, metrics, report
from onesug_jax.files import require_files
from onesug_jax.plots import COLOURS, figure_of, save_figure

_NEAR = 5.0  # points of MRR; the limits of `plot_frontier`
_MODEL = "model"  # the run's own suggester in a report; all others are its rivals


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one evaluation, the time of its stages and the size of its model; for rivals
    (minutes, parameters) if measured.
    """

    metrics: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]
    lists: pa.Table
    minutes: float | None = None
    parameters: int | None = None
    rivals: Mapping[str, tuple[float, int | None]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: the scores of a suggester."""

    name: str
    scores: Mapping[str, Mapping[str, float | None]]  # slice -> metric, in per cent
    gains: np.ndarray  # float64 [N]: 100 / rank within 16, 0 beyond, mean over the seeds
    hits: np.ndarray  # float64 [N]: 100 within 16, 0 beyond, mean over the seeds
    seeds: tuple[float, ...] = ()  # MRR of each run
    minutes: float | None = None
    parameters: int | None = None


def read_run(folder: str, name: str = "dev", **taken) -> Run:
    """One report of a work directory, with further fields of `Run`.

    Args:
      name: of the report; if "dev" does not exist, the only other one, if there is just one.

    Raises:
      UserError: there is no such report.
    """
    reports = os.path.join(folder, "report")
    names = sorted(os.listdir(reports)) if os.path.isdir(reports) else []
    names = [n for n in names if os.path.isfile(os.path.join(reports, n, "lists.parquet"))]
    if name == "dev" and name not in names and len(names) == 1:
        name = names[0]
    folder = os.path.join(reports, name)
    path = os.path.join(folder, "lists.parquet")
    expected = f"the lists of an evaluation (existing reports: {', '.join(names) or 'none'})"
    require_files([path], expected, "run evaluate first, or name another with --report")
    return Run(report.read_metrics(folder), pq.read_table(path), **taken)


def by_orders(
    run: Run,
    shares: Callable[[Sequence[str]], np.ndarray],
    kappa: float,
    *,
    slices: evaluator.SliceSpec,
) -> Run:
    """The run with its SFT lists (its model's lists, without preference training) reordered by

        log p(q | request) + kappa log(share of orders of q / average share)

    This trades other searches for orders without preference training: a baseline for every choice
    of alpha and beta.

    Args:
      shares: queries -> logarithms of their relative shares, `[n]`.

    Raises:
      UserError: the lists have no scores.
    """
    name = "sft" if "list_sft" in run.lists.column_names else _MODEL
    texts = run.lists[f"list_{name}"].to_pylist()
    scores = run.lists[f"scores_{name}"].to_pylist()
    if None in scores:
        raise UserError(
            f"the lists of {name} have no scores; weighing by orders needs them: run evaluate again"
        )
    ordered = []
    for suggestions, logs in zip(texts, scores, strict=True):
        value = np.asarray(logs, np.float64) + kappa * shares(suggestions)
        ordered.append([suggestions[i] for i in np.argsort(-value, kind="stable")])
    truths = run.lists["truth"].to_pylist()
    ranks = [metrics.rank_of(truth, each) for truth, each in zip(truths, ordered, strict=True)]
    columns = ("request_id", "prefix", "truth", "level", "prefix_count", "history")
    lists = run.lists.select(list(columns))
    lists = lists.append_column(f"rank_{_MODEL}", pa.array(ranks, pa.int32()))
    lists = lists.append_column(f"list_{_MODEL}", pa.array(ordered, pa.list_(pa.string())))
    return Run(evaluator.summarise(lists, slices=slices), lists, parameters=run.parameters)


def names_of(folders: Sequence[str]) -> dict[str, list[str]]:
    """Row -> its folders. A row has the name of its folder, or the whole path if the name is not
    unique. `A/seed_0/full` and `B/seed_1/full` are two seeds of one row, `full`.
    """
    paths = [os.path.abspath(folder) for folder in folders]
    seeded = ["seed_" in os.path.basename(os.path.dirname(path)) for path in paths]
    names = [os.path.basename(path) for path in paths]
    rows: dict[str, list[str]] = {}
    for folder, name, seed in zip(folders, names, seeded, strict=True):
        rows.setdefault(name if seed or names.count(name) == 1 else folder, []).append(folder)
    return rows


def rows_of(runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """A row for each rival, from the seeds of the first name with such a rival; then a row for each
    of the `len(runs)` names.
    """
    rivals: dict[str, list[Run]] = {}
    for seeds in runs.values():
        for name in dict.fromkeys(name for run in seeds for name in run.metrics):
            if name != _MODEL:
                rivals.setdefault(name, [run for run in seeds if name in run.metrics])
    rows = []
    for suggester, seeds in rivals.items():
        name = suggester.replace("_", " ")
        rows.append(_row(f"{name} (rival)" if name in runs else name, seeds, suggester))
    return rows + [_row(name, seeds, _MODEL) for name, seeds in runs.items()]


def _row(name: str, runs: Sequence[Run], suggester: str) -> Row:
    scores = {}
    for label in runs[0].metrics[suggester]:
        by_run = [run.metrics[suggester].get(label, {}) for run in runs]
        scores[label] = {
            metric: _mean([values.get(metric) for values in by_run])
            for metric in ("hr@16", "mrr@16", "n")
        }
    own = suggester == _MODEL
    costs: list[tuple[float | None, int | None]] = [
        (run.minutes, run.parameters) if own else run.rivals.get(suggester, (None, None))
        for run in runs
    ]
    seeds = tuple(run.metrics[suggester]["all"]["mrr@16"] or 0.0 for run in runs)
    same = all(_same_requests(run.lists, runs[0].lists) for run in runs)
    gains = [_gains(run.lists, suggester) for run in runs]
    return Row(
        name=name,
        scores=scores,
        gains=np.mean(gains, axis=0) if same else np.empty(0),
        hits=np.mean([100.0 * (gain > 0) for gain in gains], axis=0) if same else np.empty(0),
        seeds=seeds if own or len(set(seeds)) > 1 else (),  # most popular has no seed
        minutes=_mean([minutes for minutes, _ in costs]),
        parameters=costs[0][1],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if len(numbers) == len(values) else None


def _same_requests(one: pa.Table, other: pa.Table) -> bool:
    return all(one[name].equals(other[name]) for name in ("request_id", "truth"))


def _gains(rows: pa.Table, suggester: str) -> np.ndarray:
    ranks = rows[f"rank_{suggester}"].to_numpy()
    return np.where((ranks > 0) & (ranks <= 16), 100 / np.maximum(ranks, 1), 0.0)


def ahead(row: Row, base: Row, orders: np.ndarray) -> dict[str, tuple[float, float, float]] | None:
    """The lead of `row` over `base` in points of MRR, over all requests and over `orders [N]`.

    Returns:
      {"all" or "order": (mean, low, high)} with the bounds of the 95 % bootstrap interval; None if
      the two did not score the same requests.
    """
    if len(row.gains) != len(orders) or len(base.gains) != len(orders):
        return None
    leads = row.gains - base.gains
    return {
        label: (float(values.mean()), *metrics.interval(values))
        for label, values in (("all", leads), ("order", leads[orders]))
        if len(values)
    }


def format_rows(rows: Sequence[Row], orders: np.ndarray) -> str:
    """HR@16 and MRR@16 of all searches and of those with an order, with 95 % intervals over
    requests; MRR@16 of frequent, rare and unseen prefixes; minutes and parameters. "-": not
    measured.
    """
    shown = [("all", "hr@16"), ("all", "mrr@16"), ("order", "hr@16"), ("order", "mrr@16")]
    shown += [(label, "mrr@16") for label in ("frequent", "rare", "unseen")]
    heads = ["in per cent", "HR", "MRR", "order HR", "order MRR", "frequent", "rare", "unseen"]
    heads += [f"{head} 95 %" for head in heads[1:5]] + ["seeds", "minutes", "parameters"]
    lines = [heads]
    for row in rows:
        cells = [report.number(row.scores.get(label, {}).get(metric)) for label, metric in shown]
        paired = len(row.gains) == len(orders)
        for mask in (orders | True, orders):
            both = (row.hits, row.gains)
            cells += [_interval(values[mask]) if paired else "-" for values in both]
        spread = f"{len(row.seeds)}: {min(row.seeds or [0]):.2f} to {max(row.seeds or [0]):.2f}"
        cells += [spread if len(row.seeds) > 1 else "-", report.number(row.minutes, 1)]
        cells += ["-" if row.parameters is None else f"{row.parameters:,}"]
        lines.append([row.name, *cells])
    counts = [rows[-1].scores.get(label, {}).get("n") for label, _ in shown]
    cells = ["-" if count is None else f"{int(count):,}" for count in counts]
    return report.table([*lines, ["requests", *cells, *[""] * (len(heads) - len(shown) - 1)]])


def format_ahead(rows: Sequence[Row], base: Row, orders: np.ndarray) -> str:
    """`ahead` of every row against `base`, as a table."""
    lines = [[f"MRR@16 ahead of {base.name}", "all", "95 %", "", "order", "95 %", ""]]
    for row in rows:
        leads = ahead(row, base, orders)
        cells = [row.name]
        if leads is None:
            lines.append([*cells, "-", "not the same requests", "", "-", "", ""])
            continue
        for label in ("all", "order"):
            if label not in leads:
                cells += ["-", "-", ""]
                continue
            mean, low, high = leads[label]
            significant = low > 0 or high < 0
            cells += [f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"]
            cells += ["more than chance" if significant else "within chance"]
        lines.append(cells)
    return report.table(lines)


def order_requests(lists: pa.Table) -> np.ndarray:
    """Whether each request of a report has an order, bool [N]."""
    return lists["level"].to_numpy(zero_copy_only=False) == "order"


def plot_frontier(
    rows: Sequence[Row],
    base: Row,
    orders: np.ndarray,
    path: str,
    weighed: Mapping[str, float] | None = None,
) -> str:
    """Plots the lead of each row over `base` on all searches (x) and on those with an order (y),
    with 95 % intervals; returns `path`. Rows more than `_NEAR` points away are named below the plot
    instead, unless all are.

    `weighed`: the names of rows of SFT lists weighed by orders -> kappa; one line joins them in
    this order.
    """
    leads = {row.name: ahead(row, base, orders) for row in rows if row is not base}
    both = {name: lead for name, lead in leads.items() if lead and "order" in lead}
    points = {name: (lead["all"][0], lead["order"][0]) for name, lead in both.items()}
    near = [name for name, point in points.items() if max(map(abs, point)) <= _NEAR]
    near = near or list(points)
    figure, (axis,) = figure_of(1, width=7.6)
    axis.axhline(0, color="#d0d4d8", linewidth=1, zorder=0)
    axis.axvline(0, color="#d0d4d8", linewidth=1, zorder=0)
    axis.plot([0], [0], "*", color=COLOURS[1], markersize=12, label=base.name)
    line = {"sft": 0.0, **weighed} if weighed else {}
    line = {name: kappa for name, kappa in line.items() if name in near}
    if line:
        coordinates = zip(*(points[name] for name in line), strict=True)
        label = "SFT, weighed by orders^kappa"
        axis.plot(*coordinates, "o-", color="#8a939c", markersize=4, label=label)
    for name, kappa in line.items():
        axis.annotate(f"{kappa:g}", points[name], (4, 5), textcoords="offset points", fontsize=8)
    styles = [(marker, colour) for marker in "os^DvP" for colour in (COLOURS[0], *COLOURS[2:])]
    single = [name for name in near if name not in line]
    for name, (marker, colour) in zip(single, itertools.cycle(styles), strict=False):
        (x, left, right), (y, low, high) = both[name]["all"], both[name]["order"]
        axis.hlines(y, left, right, color=colour, alpha=0.4, linewidth=0.8)
        axis.vlines(x, low, high, color=colour, alpha=0.4, linewidth=0.8)
        axis.plot([x], [y], marker, color=colour, label=name)
    far = [f"{name} ({x:+.1f}, {y:+.1f})" for name, (x, y) in points.items() if name not in near]
    note = f"\nnot drawn: {', '.join(far)}" if far else ""
    axis.set_xlabel(f"points of MRR ahead on all searches{note}")
    axis.set_ylabel("points of MRR ahead with an order")
    axis.set_title(f"Ahead of {base.name}", loc="left")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def _interval(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    low, high = metrics.interval(values)
    return f"{low:.1f} to {high:.1f}"
