"""The row "best possible" of a simulated log, and how far each list gets towards it.

A simulated log comes with the lists of an oracle with access to every hidden state of the
simulation (`logs.simulate.oracle`). Nothing beats them beyond chance, so the metric of a list says
more beside two others: most popular completion, which needs no model, and the ceiling.
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
    """Whether the log in `folder` was simulated with its ceiling."""
    return os.path.isfile(os.path.join(folder, CEILING))


def load(folder: str) -> tuple[Lists, Lists]:
    """What `simulate` wrote into `folder`: the most probable queries, and those of a request that
    ends with an order, which are the ceiling of the metric over those rows.

    Raises:
      UserError: it is missing, or no such file.
    """
    path = os.path.join(folder, CEILING)
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: expected the best possible lists of a simulated log, found no such file; "
            "run simulate (with ceiling=True) first"
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

    Negative where a list is worse than most popular; NaN where the ceiling is no higher than it.
    """
    return (metric - popular) / (best - popular) if best > popular else math.nan
