"""Calibration: the probability the model gives a suggestion, and how often it was searched.

A suggestion's score is its log-probability (over `|q|^alpha`; `BeamConfig.alpha` 0 leaves it as it
is), so of all suggestions given 0.3, three in ten should be the query that was searched.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from onesug_jax.plots import COLOURS, figure_of, save_figure


def predicted(rows: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Every suggestion of a suggester: the probability it was given, float64 [S], and whether it
    was the one searched, bool [S]; None for a suggester without scores.
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
    given = np.array([score for scores in lists for score in scores or ()], np.float64)
    return np.exp(np.minimum(given, 0.0)), np.array(hits, bool)


def bins(given: np.ndarray, hits: np.ndarray, count: int = 12) -> np.ndarray:
    """Suggestions binned by probability, as many in each bin as in the next.

    Args:
      given, hits: as `predicted` returns them.

    Returns:
      float64 [bins, 3]: mean probability given, share searched, number of suggestions. Bins with
      the same bounds become one, so there may be fewer than `count`.
    """
    edges = np.unique(np.quantile(given, np.linspace(0, 1, count + 1)))
    place = np.clip(np.searchsorted(edges, given, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = [
        (given[place == i].mean(), hits[place == i].mean(), (place == i).sum())
        for i in range(max(len(edges) - 1, 1))
        if (place == i).any()
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def error(given: np.ndarray, hits: np.ndarray, count: int = 12) -> float:
    """Expected calibration error, 0 to 1: the mean distance of `given [N]`, probabilities, and
    `hits [N]`, 0 or 1, over `bins`, each by its weight.
    """
    table = bins(given, hits, count)
    return float(np.average(np.abs(table[:, 0] - table[:, 1]), weights=table[:, 2]))


def plot(rows: pa.Table, names: Mapping[str, str], path: str) -> str | None:
    """Reliability of the suggesters `names` (name -> words) that have scores, into `path`; None
    where none has.
    """
    found = {}
    for name, words in names.items():
        pair = predicted(rows, name)
        if pair is not None and len(pair[0]):
            found[words] = pair
    if not found:
        return None
    figure, (axis,) = figure_of(1, width=5.2)
    axis.plot([1e-4, 1], [1e-4, 1], color="#b0b7bf", linewidth=1, zorder=0)
    for colour, (words, pair) in zip(COLOURS, found.items(), strict=False):
        table = bins(*pair)
        label = f"{words}, off by {100 * error(*pair):.1f} points"
        shown = table[table[:, 1] > 0]
        axis.plot(shown[:, 0], shown[:, 1], "o-", color=colour, markersize=4, label=label)
    axis.set(xscale="log", yscale="log", xlim=(1e-4, 1.2), ylim=(1e-4, 1.2))
    axis.set_xlabel("probability that the model gives a suggestion")
    axis.set_ylabel("share that was searched")
    axis.legend(frameon=False)
    return save_figure(figure, path)
