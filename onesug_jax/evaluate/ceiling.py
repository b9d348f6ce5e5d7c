"""The row "best possible" of a simulated log, and how far each list gets towards it.

A simulated log comes with the lists of an oracle with access to every hidden state of the
simulation (`logs.simulate.oracle`). Nothing beats them beyond chance, so the metric of a list says
more beside two others: most popular completion, which needs no model, and the ceiling.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.logs.simulate.table import CEILING

NAME = "best_possible"


@dataclass(frozen=True)
class Ceiling:
    """Best possible lists by request_id, up to 16 queries each, best first.

    Attributes:
      queries: the most probable queries.
      for_orders: the most probable queries of a request that ends with an order; the ceiling of
        the metric over those rows.
      expected: the MRR@16 that the oracle expects of `queries`, between 0 and 1; its mean over the
        rows is the ceiling without the noise of the draws.
    """

    queries: Mapping[str, Sequence[str]]
    for_orders: Mapping[str, Sequence[str]]
    expected: Mapping[str, float]

    @staticmethod
    def available(folder: str) -> bool:
        """Whether the log in `folder` was simulated with its ceiling."""
        return os.path.isfile(os.path.join(folder, CEILING))

    @classmethod
    def load(cls, folder: str) -> Ceiling:
        """Read what `simulate` wrote into `folder`; UserError if it is missing or no such file."""
        path = os.path.join(folder, CEILING)
        if not os.path.isfile(path):
            raise UserError(
                f"{path}: expected the best possible lists of a simulated log, found no such file; "
                "run simulate (with ceiling=True) first"
            )
        try:
            table = pq.read_table(path, columns=["request_id", "queries", "chances", "for_orders"])
        except (OSError, pa.ArrowInvalid) as error:
            check_refused(path, error)
            raise UserError(
                f"{path}: expected a Parquet file with request_id, queries, chances and "
                f"for_orders, found {error}; run simulate again"
            ) from None
        ids, queries, chances, orders = (column.to_pylist() for column in table.columns)
        expected = (sum(p / place for place, p in enumerate(row, 1)) for row in chances)
        return cls(
            dict(zip(ids, queries, strict=True)),
            dict(zip(ids, orders, strict=True)),
            dict(zip(ids, expected, strict=True)),
        )

    def lists(self, request_ids: Iterable[str], *, orders: bool = False) -> list[Sequence[str]]:
        """The lists of some requests: `queries`, or `for_orders`; UserError for a request unknown.

        Rows of train have no lists.
        """
        source, found = (self.for_orders if orders else self.queries), []
        for request_id in request_ids:
            if request_id not in source:
                raise UserError(
                    f"request {request_id!r}: expected a dev or test row of the simulated log, "
                    "found no best possible list for it; simulate and ingest the log again"
                )
            found.append(source[request_id])
        return found


def share_of_the_way(metric: float, popular: float, best: float) -> float:
    """(metric - most popular) / (best - most popular): 0 is most popular, 1 the ceiling.

    Negative where a list is worse than most popular; NaN where the ceiling is no higher than it.
    """
    return (metric - popular) / (best - popular) if best > popular else math.nan
