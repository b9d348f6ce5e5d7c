"""Queries near prefixes and near one another, from which candidates come beside the completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Nearby(NamedTuple):
    """Precomputed neighbours, by the numbers of the initial queries.

    Attributes:
      similar: int32 `[N, K]`, the queries nearest to each of the N initial queries, nearest first,
        then -1; None: unknown.
      around: prefix -> numbers of queries near it; None: no such search.
    """

    similar: np.ndarray | None = None
    around: Callable[[str], Sequence[int]] | None = None


NOTHING = Nearby()
