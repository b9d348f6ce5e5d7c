"""Two runs on the same requests: how far the second is ahead, and whether chance explains it.

Most lists of two runs agree, so their difference is far surer than either mean: what is resampled
is the difference of each request (paired bootstrap).
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.evaluate import metrics
from onesug_jax.files import need


def read_lists(folder: str) -> pa.Table:
    """lists.parquet of a report folder. Raises UserError if there is none."""
    path = os.path.join(folder, "lists.parquet")
    need([path], "the lists of an evaluation", "run evaluate first")
    return pq.read_table(path)


def ahead(one: pa.Table, other: pa.Table, *, k: int = 16) -> dict[str, tuple] | None:
    """How many points of MRR@k the model of `other` is ahead of that of `one`.

    Args:
      one, other: lists of two evaluations (`read_lists`).

    Returns:
      {"all" or "order": (mean, low, high, requests whose rank differs, requests)}, low to high
      holding the mean in 95 % of resamples; None where the two did not score the same requests.
    """
    if any(not one[name].equals(other[name]) for name in ("request_id", "truth")):
        return None
    gained = 100 * (_reciprocal(other, k) - _reciprocal(one, k))
    order = one["level"].to_numpy(zero_copy_only=False) == "order"
    found = {}
    for label, chosen in (("all", gained), ("order", gained[order])):
        if len(chosen):
            interval = metrics.interval(chosen)
            moved = int(np.count_nonzero(chosen))
            found[label] = (float(chosen.mean()), *interval, moved, len(chosen))
    return found


def format_ahead(found: dict[str, tuple], names: tuple[str, str], *, k: int = 16) -> str:
    """`ahead` in words, a line a slice."""
    lines = []
    for label, (mean, low, high, moved, count) in found.items():
        what = {"all": "all searches", "order": "with an order"}[label]
        sure = "more than chance" if low > 0 or high < 0 else "within chance"
        lines.append(
            f"MRR@{k}, {what}: {names[1]} {mean:+.2f} against {names[0]} (95 %: {low:+.2f} to "
            f"{high:+.2f}, {sure}); {moved:,} of {count:,} ranks differ"
        )
    return "\n".join(lines)


def _reciprocal(rows: pa.Table, k: int) -> np.ndarray:
    ranks = rows["rank_model"].to_numpy()
    return np.where((ranks > 0) & (ranks <= k), 1 / np.maximum(ranks, 1), 0.0)
