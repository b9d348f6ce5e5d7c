"""Calibration: the predicted probability of a suggestion against the share that was searched.

A suggestion's score is its log-probability (divided by `|q|^alpha`, with `BeamConfig.alpha` 0 by
default), so three in ten of the suggestions with probability 0.3 should be the searched query.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from onesug_jax.plots import COLOURS, figure_of, save_figure


def predicted(rows: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """For every suggestion of a suggester: its probability, float64 [S], and whether it is the
    searched query, bool [S]; None for a suggester without scores.
    """
    column = f"scores_{name}"
    if column not in rows.column_names or not rows[column].null_count < rows.num_rows:
        return None
    ranks = rows[f"rank_{name}"].to_pylist()
    lists = rows[column].to_pylist()
    hits = [
        place == rank
        for rank, scores in zip(ranks, lists, strict=True)
        for place in range(1, len(scores or ()) + 1)
    ]
    logs = np.array([score for scores in lists for score in scores or ()], np.float64)
    return np.exp(np.minimum(logs, 0.0)), np.array(hits, bool)


def bins(probabilities: np.ndarray, hits: np.ndarray, count: int = 12) -> np.ndarray:
    """Suggestions in bins of equal size by probability.

    Args:
      probabilities, hits: the output of `predicted`.

    Returns:
      float64 [bins, 3]: mean probability, share searched, number of suggestions. Bins with the
      same bounds become one, so there may be fewer than `count`.
    """
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, count + 1)))
    bin_of = np.searchsorted(edges, probabilities, side="right") - 1
    bin_of = np.clip(bin_of, 0, max(len(edges) - 2, 0))
    rows = [
        (probabilities[bin_of == i].mean(), hits[bin_of == i].mean(), (bin_of == i).sum())
        for i in np.unique(bin_of)
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def error(probabilities: np.ndarray, hits: np.ndarray, count: int = 12) -> float:
    """Expected calibration error, 0 to 1: the weighted mean over `bins` of the distance between
    mean probability and share searched.
    """
    table = bins(probabilities, hits, count)
    return float(np.average(np.abs(table[:, 0] - table[:, 1]), weights=table[:, 2]))


def plot(rows: pa.Table, names: Mapping[str, str], path: str) -> str | None:
    """Writes a reliability diagram of the suggesters `names` (name -> label) with scores; its path,
    or None if there are no scores.
    """
    pairs = {}
    for name, label in names.items():
        pair = predicted(rows, name)
        if pair is not None and len(pair[0]):
            pairs[label] = pair
    if not pairs:
        return None
    figure, (axis,) = figure_of(1, width=5.2)
    axis.plot([1e-4, 1], [1e-4, 1], color="#b0b7bf", linewidth=1, zorder=0)
    for colour, (name, pair) in zip(COLOURS, pairs.items(), strict=False):
        table = bins(*pair)
        label = f"{name}, off by {100 * error(*pair):.1f} points"
        shown = table[table[:, 1] > 0]
        axis.plot(shown[:, 0], shown[:, 1], "o-", color=colour, markersize=4, label=label)
    axis.set(xscale="log", yscale="log", xlim=(1e-4, 1.2), ylim=(1e-4, 1.2))
    axis.set_xlabel("predicted probability of a suggestion")
    axis.set_ylabel("share that was searched")
    axis.legend(frameon=False)
    return save_figure(figure, path)
