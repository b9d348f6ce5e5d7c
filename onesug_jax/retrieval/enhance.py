"""The enhanced prefix, mixed with the queries searched after it, and the enhanced query, mixed with
its mined related queries.

PAPER.md section 2, point 3: e_p* = (1 - w) e_p + w * mean of the vectors of the k queries that
co-occur with the prefix; w = 0.5, more than 0.7 hurts. The result is normalised to length 1,
because all uses compare by cosine. A prefix without queries gets e_p, normalised. The mean is
unweighted: the count of a pair decides whether it is among the k, not its weight.

e_q* is the same equation with e_q and the queries that Swing finds closest: texts alone do not
show that two queries lead to the same items. Ids, the index and the similarity to a history use
e_q*.

Numpy only. `logs.mining` mines the pairs; the text encoder makes the vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.retrieval.id_tree import ranges


@dataclasses.dataclass(frozen=True)
class EnhanceConfig:
    """How a prefix, or a query, is enhanced.

    Attributes:
      weight: w, the weight of the mean of the co-occurring queries.
      k: number of co-occurring queries in the mean, best first.

    Raises:
      UserError: a weight outside 0..1, or k below 1.
    """

    weight: float = 0.5
    k: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(f"EnhanceConfig.weight={self.weight!r}: expected a number from 0 to 1.")
        if self.k < 1:
            raise UserError(
                f"EnhanceConfig.k={self.k!r}: expected 1 or more queries; for plain prefixes set "
                "EnhanceConfig.weight=0."
            )


def enhance(
    own: np.ndarray,
    offsets: np.ndarray,
    numbers: np.ndarray,
    vectors_of: Callable[[np.ndarray], np.ndarray],
    config: EnhanceConfig | None = None,
    *,
    block: int = 2048,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Enhanced vectors of P prefixes, or queries, `block` at a time (block * k vectors in memory).

    Args:
      own: [P, D] unit vectors e_p.
      offsets: [P + 1], the queries of prefix i are numbers[offsets[i] : offsets[i + 1]].
      numbers: the co-occurring queries, best first within a prefix.
      vectors_of: query numbers [n] to their unit vectors [n, D] (of an array: `array.__getitem__`).
      out: [P, D] array to write to, such as a memory map; None: a new float32 array.

    Returns:
      [P, D], rows of length 1 (a row of zeros stays zeros).
    """
    config = config or EnhanceConfig()
    out = np.empty(own.shape, np.float32) if out is None else out
    for begin in range(0, len(own), block):
        rows = slice(begin, min(begin + block, len(own)))
        starts = np.asarray(offsets[begin : rows.stop], np.int64)
        sizes = np.minimum(np.asarray(offsets[begin + 1 : rows.stop + 1]) - starts, config.k)
        mixed = np.array(own[rows], np.float32)
        paired = np.flatnonzero(sizes)
        if len(paired):
            starts, sizes = starts[paired], sizes[paired]
            vectors = vectors_of(np.asarray(numbers[ranges(starts, sizes)]))
            means = np.add.reduceat(vectors, np.cumsum(sizes) - sizes, axis=0) / sizes[:, None]
            mixed[paired] = (1 - config.weight) * mixed[paired] + config.weight * means
        lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
        out[rows] = mixed / np.where(lengths > 0, lengths, 1)
    return out
