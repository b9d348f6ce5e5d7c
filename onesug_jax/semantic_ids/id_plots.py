"""Plots of the semantic ids: use of the codes, learning curve, queries of the first codes.

For the report of PAPER.md section 2.4: they show a collapsed codebook at once. They read the files
of `quantize`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence

import numpy as np

from onesug_jax.plots import COLOURS, figure_of, save_figure
from onesug_jax.semantic_ids.ids import SemanticIds, level_usage

_GREY = "#d5d9dd"
_COLOURED = 10  # first-level codes with a colour of their own


def write_plots(out: str, embeddings: np.ndarray, *, sample: int = 5000, seed: int = 0) -> dict:
    """Write all plots of the ids in `out` into `out`; returns name -> path.

    `embeddings` [N, D] may be a memory map; the map shows `sample` of them. There is no learning
    curve if the quantiser was not trained in steps.

    Raises:
      UserError: no ids in `out`.
    """
    ids = SemanticIds.load(out)
    written = {
        "code_usage": plot_code_usage(ids.ids, ids.codes, os.path.join(out, "code_usage.png")),
        "id_map": plot_map(
            embeddings, ids.ids, os.path.join(out, "id_map.png"), sample=sample, seed=seed
        ),
    }
    rows = read_evaluations(os.path.join(out, "metrics.jsonl"))
    if rows:
        path = os.path.join(out, "id_learning_curve.png")
        written["id_learning_curve"] = plot_learning_curve(rows, path)
    return written


def read_evaluations(path: str) -> list[dict[str, float]]:
    """The evaluations in a metrics JSONL, by step; none if the file is missing.

    A line cut off by a crash is ignored. If a step is reported twice, the last report counts.
    """
    rows: dict[int, dict[str, float]] = {}
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
                if row["kind"] == "evaluate" and math.isfinite(row["reconstruction"]):
                    rows[int(row["step"])] = row
            except (ValueError, KeyError, TypeError):
                continue
    return [rows[step] for step in sorted(rows)]


def plot_code_usage(ids: np.ndarray, codes: int, path: str) -> str:
    """One panel a level: queries of each code, sorted, on a log scale; returns `path`."""
    usage = level_usage(ids, codes)
    figure, axes = figure_of(len(usage), width=3.4)
    for level, (axis, row) in enumerate(zip(axes, usage, strict=True)):
        counts = np.sort(np.bincount(ids[:, level], minlength=codes))[::-1]
        used = counts[counts > 0]
        axis.step(np.arange(1, len(used) + 1), used, where="mid", color=COLOURS[0])
        axis.axhline(len(ids) / codes, color=COLOURS[1], linewidth=1, linestyle="--")
        axis.set(yscale="log", xlim=(0, codes + 1), xlabel="code, most used first")
        axis.set_title(
            f"level {level + 1}\n{row['usage']:.1%} used, perplexity {row['perplexity']:.0f}",
            fontsize=10,
        )
    axes[0].set_ylabel("queries, collisions resolved (dashed: even use)")
    return save_figure(figure, path)


def plot_learning_curve(rows: Sequence[dict[str, float]], path: str) -> str:
    """Reconstruction error and each level's perplexity by step; returns `path`."""
    figure, axes = figure_of(2, width=4.6)
    steps = [row["step"] for row in rows]
    axes[0].plot(steps, [row["reconstruction"] for row in rows], marker=".", color=COLOURS[0])
    axes[0].set(xlabel="step", ylabel="squared error", title="reconstruction error")
    level, most = 1, 1.0
    while f"perplexity_{level}" in rows[0]:
        values = [row[f"perplexity_{level}"] for row in rows]
        colour = COLOURS[(level - 1) % len(COLOURS)]
        axes[1].plot(steps, values, marker=".", color=colour, label=f"level {level}")
        level, most = level + 1, max(most, *values)
    axes[1].set(xlabel="step", ylabel="perplexity", title="use of the codes", ylim=(0, 1.08 * most))
    axes[1].legend(frameon=False)
    return save_figure(figure, path)


def plot_map(
    embeddings: np.ndarray, ids: np.ndarray, path: str, *, sample: int = 5000, seed: int = 0
) -> str:
    """A sample of queries in two dimensions, the most frequent first-level codes coloured.

    The plane is that of the means of the coloured codes (`project`), since the plane of largest
    variance of all queries seldom separates neighbouring codes. Returns `path`.
    """
    from matplotlib import colormaps

    count = len(embeddings)
    rows = np.arange(count)
    if count > sample:
        rows = np.sort(np.random.default_rng(seed).choice(count, sample, replace=False))
    vectors, first = np.asarray(embeddings[rows], np.float32), np.asarray(ids[rows, 0], np.int64)
    sizes = np.bincount(first)
    top = [code for code in np.argsort(-sizes, kind="stable")[:_COLOURED] if sizes[code]]
    points = project(vectors, np.stack([vectors[first == code].mean(0) for code in top]))
    figure, (axis,) = figure_of(1, width=6.4)
    rest = ~np.isin(first, top)
    axis.scatter(*points[rest].T, s=3, color=_GREY, linewidths=0, label=f"{rest.sum():,} others")
    for code, colour in zip(top, colormaps["tab10"](range(_COLOURED)), strict=False):
        mask = first == code
        label = f"code {code} ({mask.sum():,})"
        axis.scatter(*points[mask].T, s=9, color=[colour], linewidths=0, label=label)
    axis.set(title=f"{len(rows):,} queries by first code", xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, markerscale=2)
    return save_figure(figure, path)


def project(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Vectors [M, D] in the plane of largest variance of `centres` [C, D]: [M, 2] (PCA).

    The largest component of each direction is positive. Fewer than three centres span no plane;
    the missing coordinates are 0.
    """
    mean = centres.mean(0)
    _, strengths, directions = np.linalg.svd(centres - mean, full_matrices=False)
    plane = np.zeros((2, vectors.shape[1]))
    real = strengths[:2] > 1e-6
    plane[: len(real)][real] = directions[:2][real]
    largest = np.take_along_axis(plane, np.abs(plane).argmax(1)[:, None], axis=1)
    return (vectors - mean) @ (plane * np.where(largest < 0, -1, 1)).T
