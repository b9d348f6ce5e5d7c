"""The row "best possible" of a simulated log, and the share of the way to it.

A simulated log has the lists of an oracle with access to every hidden state of the simulation
(`logs.simulate.oracle`). No list beats them beyond chance, so they are the ceiling of a metric;
most popular completion, which needs no model, is the start of the way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.logs.simulate.table import CEILING

NAME = "best_possible"


Lists = dict[str, Sequence[str]]  # by request_id, up to 16 queries each, best first


def available(folder: str) -> bool:
    """Whether the log in `folder` has a ceiling."""
    return os.path.isfile(os.path.join(folder, CEILING))


def load(folder: str) -> tuple[Lists, Lists]:
    """Reads the lists that `simulate` wrote into `folder`: the most probable queries, and the most
    probable ones given an order, which are the ceiling over rows with an order.

    Raises:
      UserError: the file is missing or not readable.
    """
    path = os.path.join(folder, CEILING)
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: expected the best possible lists of a simulated log, found no such file; "
            "run simulate first (with ceiling=True)"
        )
    try:
        table = pq.read_table(path, columns=["request_id", "queries", "for_orders"])
    except (OSError, pa.ArrowInvalid) as error:
        check_refused(path, error)
        raise UserError(
            f"{path}: expected a Parquet file with request_id, queries and for_orders, found "
            f"{error}; run simulate again"
        ) from None
    ids, queries, orders = (column.to_pylist() for column in table.columns)
    return dict(zip(ids, queries, strict=True)), dict(zip(ids, orders, strict=True))


def share_of_the_way(metric: float, popular: float, best: float) -> float:
    """(metric - most popular) / (best - most popular): 0 is most popular, 1 the ceiling.

    Negative if a list is worse than most popular; NaN if the ceiling is not above most popular.
    """
    return (metric - popular) / (best - popular) if best > popular else math.nan
