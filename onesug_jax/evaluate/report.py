"""The files of an evaluation: metrics.json, lists.parquet, plots, tables as text.

Numbers are stored as computed and rounded only where they are printed.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq

from onesug_jax.evaluate import calibration, headline
from onesug_jax.evaluate.evaluator import Evaluation
from onesug_jax.evaluate.headline import Metrics
from onesug_jax.files import atomic_path, read_json, write_json
from onesug_jax.plots import COLOURS, figure_of, save_figure

_COLOURS = (COLOURS[0], "#b0b7bf", *COLOURS[1:])  # the model, most popular (grey), others


def write_report(
    evaluation: Evaluation, folder: str, *, learning_curves: Mapping[str, str] = {}
) -> None:
    """Writes metrics.json, lists.parquet and the plots into `folder`.

    `learning_curves`: stage -> its metrics JSONL ({"step": .., "loss": ..} a line); missing files
    are ignored.
    """
    metrics, path_of = evaluation.metrics, functools.partial(os.path.join, folder)
    write_json(path_of("metrics.json"), metrics, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path_of("lists.parquet")) as lists:
        pq.write_table(evaluation.rows, lists)
    plot_slices(metrics, folder)
    calibration.plot(evaluation.rows, headline.lines(metrics), path_of("calibration.png"))
    files = {name: path for name, path in learning_curves.items() if os.path.isfile(path)}
    curves = {name: points for name, path in files.items() if (points := read_curve(path))}
    if curves:
        plot_curves(curves, path_of("learning_curve.png"))
    if "rwr" in files and (margins := read_curve(files["rwr"], "margin")):
        plot_preference(margins, read_curve(files["rwr"], "accuracy"), path_of("preference.png"))


def read_metrics(folder: str) -> dict:
    """Reads metrics.json of a report folder. Raises UserError if it is missing."""
    path = os.path.join(folder, "metrics.json")
    return read_json(path, "the metrics of an evaluation", "run evaluate first")


def format_headline(metrics: Metrics, *, shown: Sequence[str] = ("hr@16", "mrr@16")) -> str:
    """The headline: a row for each suggester (`headline.lines`) with the metrics `shown` in per
    cent, of all searches and of those with an order; if there is a best possible row, also each
    row's share of the way to it by the last of `shown`.
    """
    labels, ways = headline.lines(metrics, shown[-1]), headline.ways(metrics, shown[-1])
    heads = ["in per cent"]
    for slice_ in headline.SLICES:
        start = "" if slice_ == "all" else f"{slice_}s "
        heads += [start + metric.upper() for metric in shown] + [start + "of the way"] * bool(ways)
    rows = [heads]
    for name, label in labels.items():
        cells = [label]
        for slice_ in headline.SLICES:
            cells += [number(metrics[name][slice_][metric]) for metric in shown]
            if ways:
                cells.append(number(100 * ways[name][slice_], 0))
        rows.append(cells)
    cells = ["requests"]
    for slice_ in headline.SLICES:
        count = next(iter(metrics.values()))[slice_]["n"]
        cells += [f"{count:,}", *[""] * (len(shown) - 1 + bool(ways))]
    sentence = headline.sources(metrics)
    return table([*rows, cells]) + (f"\n{sentence}" if sentence else "")


def format_slices(metrics: Metrics, *, metric: str = "mrr@16") -> str:
    """One metric in per cent for every slice and every suggester of the headline, and, after a
    replay, the share of requests whose query was among the candidates.
    """
    labels = headline.lines(metrics, metric)
    slices = next(iter(metrics.values()))
    recalled = "recall" in slices["all"]
    heads = ["in candidates"] * recalled
    rows = [(metric.upper(), *labels.values(), *heads, "requests")]
    for slice_, scores in slices.items():
        values = [metrics[name][slice_][metric] for name in labels]
        values += [scores["recall"]] if recalled else []
        rows.append((slice_, *map(number, values), f"{scores['n']:,}"))
    return table(rows)


def example_prefixes(rows, frequent: int, each: int = 4) -> dict[str, list[str]]:
    """The first typed prefixes of a scored split that are frequent, rare, and unseen in train.

    `rows`: of an `Evaluation`.
    """
    groups: dict[str, list[str]] = {"frequent": [], "rare": [], "unseen": []}
    pairs = zip(rows["prefix"].to_pylist(), rows["prefix_count"].to_pylist(), strict=True)
    for prefix, count in dict(pairs).items():
        group = groups["frequent" if count >= frequent else "rare" if count else "unseen"]
        if prefix and len(group) < each:
            group.append(prefix)
    return groups


def write_related(groups: Mapping[str, Mapping[str, Sequence[str]]], folder: str) -> str:
    """Writes related queries, `{group: {prefix: queries}}`, into related.txt; its path."""
    rows = [("prefix", "", "related queries, best first")]
    for name, examples in groups.items():
        for prefix, queries in examples.items():
            rows.append((repr(prefix), name, ", ".join(queries) or "(none)"))
    path = os.path.join(folder, "related.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(table(rows, left=True) + "\n")
    return path


def plot_slices(metrics: Metrics, folder: str) -> list[str]:
    """Two bar charts of HR@16 and MRR@16, by prefix length and by other slices; their files."""
    paths = []
    labels = [label for label, scores in next(iter(metrics.values())).items() if scores["n"]]
    by_length = [label for label in labels if label.startswith("prefix_")]
    others = [label for label in labels if not label.startswith("prefix_")]
    for name, chosen, title in (
        ("by_prefix_length", by_length, "by length of the typed prefix"),
        ("by_slice", others, "by slice"),
    ):
        if chosen:
            path = os.path.join(folder, f"{name}.png")
            paths.append(_bars(metrics, chosen, ("hr@16", "mrr@16"), title, path))
    return paths


def read_curve(path: str, figure: str = "loss") -> list[tuple[int, float]]:
    """(step, `figure`) of every line of a metrics JSONL with both; truncated lines are skipped.

    Of a step with two reports (after a resume) the last one counts.
    """
    points: dict[int, float] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
                step, value = int(entry["step"]), float(entry[figure])
            except (ValueError, KeyError, TypeError):
                continue
            if math.isfinite(value):
                points[step] = value
    return sorted(points.items())


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: str) -> str:
    """Loss by step of each stage as a PNG at `path`; returns `path`."""
    figure, axes = figure_of(1, width=6.4)
    for colour, (name, points) in zip(_COLOURS * len(curves), curves.items(), strict=False):
        axes[0].plot(*zip(*points, strict=True), label=name, color=colour)
    axes[0].set(xlabel="step", ylabel="loss", title="learning curve")
    axes[0].legend(frameon=False)
    return save_figure(figure, path)


def plot_preference(
    margins: Sequence[tuple[int, float]], shares: Sequence[tuple[int, float]], path: str
) -> str:
    """The positive's mean lead in implicit reward, and the share of negatives it leads, by step of
    preference alignment; returns `path`.
    """
    figure, axes = figure_of(2, width=5.0)
    for axis, points, title in (
        (axes[0], margins, "lead of the positive, in implicit reward"),
        (axes[1], shares, "share of negatives it leads"),
    ):
        axis.plot(*zip(*points, strict=True), color=COLOURS[0])
        axis.set(xlabel="step", title=title)
    return save_figure(figure, path)


def _bars(
    metrics: Metrics, labels: Sequence[str], names: Sequence[str], title: str, path: str
) -> str:
    suggesters = headline.lines(metrics, names[-1])
    count = len(suggesters)
    figure, axes = figure_of(len(names), width=1.8 + 0.62 * len(labels) * max(1, count / 2))
    width = 0.8 / count
    first = [name for name in (headline.MODEL, headline.POPULAR) if name in suggesters]
    order = dict.fromkeys([*first, *suggesters])
    colours = dict(zip(order, itertools.cycle(_COLOURS), strict=False))
    for axis, metric in zip(axes, names, strict=True):
        for index, (name, text) in enumerate(suggesters.items()):
            heights = [metrics[name][label][metric] or 0.0 for label in labels]
            at = [x + (index - (count - 1) / 2) * width for x in range(len(labels))]
            bars = axis.bar(at, heights, width * 0.94, label=text, color=colours[name])
            axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        ticks = []
        for label in labels:
            text = label.removeprefix("prefix_").replace("_", "-" if "prefix_" in label else " ")
            ticks.append(f"{text}\n{next(iter(metrics.values()))[label]['n']:,}")
        axis.set_xticks(range(len(labels)), ticks, fontsize=7)
        axis.set(ylim=(0, 108), ylabel=f"{metric.upper()} in %", title=f"{metric.upper()} {title}")
    # Below the plots: inside, the legend would cover bars.
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=min(len(texts), 4), frameon=False
    )
    return save_figure(figure, path)


def number(value: float | None, places: int = 2) -> str:
    """A number as text; "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.{places}f}"


def table(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Rows as aligned text, the first column (with `left`, all) to the left. Wide characters count
    as two.
    """
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(text))
            cells.append(text + space if left or column == 0 else space + text)
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
