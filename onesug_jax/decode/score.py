"""Scoring: candidates ranked by the model in one parallel pass, instead of beams step by step.

A request's candidates (related queries, the most searched queries of its prefix) are known before
the model is asked, so nothing has to be written: each is given the score that beam search would
give it, the sum of its tokens' log-probabilities over `|q|^alpha`. They start with what was typed
and share more than that, so they are laid out as a tree of beginnings: a node a beginning, decoded
once for all that share it, each seeing the nodes on its path (`Seq2Seq.tree_scores`). Trees are
laid out here, on the host, with numpy.

What no candidate list holds cannot be found this way; `hybrid` (`suggester`) adds a few beams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.arrays import Depths, NodeScores, Paths, TreeTokens
from onesug_jax.decode.beam import ReadRequests
from onesug_jax.errors import UserError
from onesug_jax.model.seq2seq import Seq2Seq

MODES = ("beam", "score", "hybrid")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What the modes "score" and "hybrid" look at.

    Attributes:
      candidates: most candidates of a request that are scored.
      beams, max_length: width and length of the beams of "hybrid"; never more than `BeamConfig`'s.
    """

    candidates: int = 32
    beams: int = 8
    max_length: int = 8

    def __post_init__(self):
        if min(self.candidates, self.beams) < 1 or self.max_length < 2:
            raise UserError(
                "ScoreConfig: expected candidates and beams of at least 1 and max_length of at "
                f"least 2; found candidates={self.candidates}, beams={self.beams}, "
                f"max_length={self.max_length}."
            )


@flax.struct.dataclass
class Trees:
    """The beginnings of candidates, of one request or, with a leading axis B, of a batch; node 0 is
    the empty one.

    Attributes:
      tokens: `[M]`; depths: `[M]`; paths: `[M, T]` (see `arrays`). Nodes that fill up a tree are
        roots.
    """

    tokens: TreeTokens | np.ndarray
    depths: Depths | np.ndarray
    paths: Paths | np.ndarray


def plant(table: np.ndarray) -> tuple[Trees, np.ndarray]:
    """Lays out one request's tree, in numpy.

    Args:
      table: `[C, T]` the token sequences of its candidates, each with its end of sequence, then 0.

    Returns:
      the tree, and `[C]` the node at which each candidate ends (its end of sequence is no node).
    """
    count, length = table.shape
    order = np.lexsort(table.T[::-1])
    rows = table[order]
    body = np.count_nonzero(rows, axis=1) - 1

    # A row opens a node at every depth from where it leaves the row above it.
    leaves = np.ones((count, length), bool)
    leaves[1:] = rows[1:] != rows[:-1]
    inside = np.arange(length) < body[:, None]
    opens = np.logical_or.accumulate(leaves, axis=1) & inside
    row, column = np.nonzero(opens)
    path = np.zeros((count, length), np.int32)  # of every row, the node of each depth but 0
    path[row, column] = np.arange(1, len(row) + 1)
    opener = np.maximum.accumulate(np.where(opens, np.arange(count)[:, None], 0), axis=0)
    path = np.where(inside, np.take_along_axis(path, opener, axis=0), 0)

    paths = np.zeros((len(row) + 1, length), np.int32)
    paths[1:, 1:] = np.where(np.arange(length - 1) <= column[:, None], path[row, :-1], 0)
    ends = np.zeros(count, np.int32)
    ends[order] = np.where(body > 0, path[np.arange(count), np.maximum(body - 1, 0)], 0)
    tokens = np.concatenate([[0], rows[row, column]]).astype(np.int32)
    return Trees(tokens, np.concatenate([[0], column + 1]).astype(np.int32), paths), ends


def side_by_side(trees: Sequence[Trees], size: int, room: int) -> Trees:
    """A batch of `size`: these trees, filled up to `room` nodes, and empty ones."""

    def stack(*leaves: np.ndarray) -> np.ndarray:
        out = np.zeros((size, room, *leaves[0].shape[1:]), np.int32)
        for row, leaf in zip(out, leaves, strict=False):
            row[: len(leaf)] = leaf
        return out

    return jax.tree.map(stack, *trees)


def score_trees(
    model: Seq2Seq, params, read: ReadRequests, trees: Trees, alpha: float
) -> NodeScores:
    """The score of the query that ends at each node, as `beam.search` scores it: `[B, M]`."""
    total: Any = model.apply(
        {"params": params},
        trees.tokens,
        trees.depths,
        trees.paths,
        read.cross,
        read.tokens,
        read.mass,
        method="tree_scores",
    )
    return total / (trees.depths + 1).astype(jnp.float32) ** alpha
