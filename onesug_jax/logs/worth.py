"""How often searches of a query end in an order, in a few grades: what a click alone does not say.

A model that is to prefer what people buy cannot learn every query's share of orders by heart, least
of all a rare one's; so related queries are shown with their grade. A training row must not be told
its own outcome, and leaving out that row alone would tell it: the share without an order is lower
than with it. So visitors are split into folds, and a training row is shown shares that only the
other folds' searches went into (out-of-fold target encoding); serving uses all.
"""

from __future__ import annotations

import os
import zlib

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write

FILE = "orders.npz"
FOLDS = 5
GRADES = 8
# A query's share of orders over the average share; a grade begins at each.
_EDGES = (0.15, 0.3, 0.5, 0.75, 1.05, 1.5, 2.2)
_SMOOTHING = 4.0  # searches of average outcome that every query starts with


def fold_of(visitor: str) -> int:
    """The fold of a visitor's searches."""
    return zlib.crc32(visitor.encode("utf-8", "replace")) % FOLDS


class OrderGrades:
    """Grades of N known queries.

    Args:
      searches, orders: int `[FOLDS, N]`: searches of each query by the visitors of each fold, and
        how many of them ended in an order.
    """

    def __init__(self, searches: np.ndarray, orders: np.ndarray):
        self.searches, self.orders = searches, orders
        self._table = np.stack(
            [
                _grades(searches.sum(0) - searches[fold], orders.sum(0) - orders[fold])
                for fold in range(FOLDS)
            ]
            + [_grades(searches.sum(0), orders.sum(0))]
        )

    @classmethod
    def from_rows(
        cls, size: int, numbers: np.ndarray, ordered: np.ndarray, folds: np.ndarray
    ) -> OrderGrades:
        """Of R rows: query number (-1: not known), whether something was ordered, fold; `[R]`."""
        known = numbers >= 0
        place = folds[known].astype(np.int64) * size + numbers[known]
        counts = [
            np.bincount(place, weights, minlength=FOLDS * size).astype(np.int64)
            for weights in (None, ordered[known])
        ]
        return cls(*(table.reshape(FOLDS, size) for table in counts))

    def __bool__(self) -> bool:
        """Whether the log tells of any order."""
        return bool(self.orders.any())

    def of(self, numbers: np.ndarray, fold: int = -1) -> np.ndarray:
        """Grades 0 to GRADES - 1 of queries `[n]`; of a training row without its own fold."""
        return self._table[fold][numbers]

    def log_shares(self) -> np.ndarray:
        """Log of each query's share of orders over the average one, of all searches; `[N]`."""
        return np.log(np.maximum(_shares(self.searches.sum(0), self.orders.sum(0)), 1e-9))

    def save(self, folder: str) -> None:
        """Into folder/orders.npz."""
        with atomic_write(os.path.join(folder, FILE)) as file:
            np.savez(file, searches=self.searches, orders=self.orders)

    @classmethod
    def load(cls, folder: str, size: int) -> OrderGrades:
        """Of `size` known queries. Raises UserError where it was made of others."""
        path = os.path.join(folder, FILE)
        with np.load(path) as saved:
            found = cls(saved["searches"], saved["orders"])
        if found.searches.shape[1] != size:
            raise UserError(
                f"{path} counts {found.searches.shape[1]:,} queries, {size:,} are known: run the "
                "rank stage again."
            )
        return found


def _shares(searches: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Shares of orders, smoothed, over the average share, `[N]`."""
    average = orders.sum() / max(searches.sum(), 1)
    share = (orders + _SMOOTHING * average) / (searches + _SMOOTHING)
    return share / max(average, 1e-9)


def _grades(searches: np.ndarray, orders: np.ndarray) -> np.ndarray:
    return np.searchsorted(_EDGES, _shares(searches, orders), side="right").astype(np.int8)
