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

import flax.struct
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

    candidates: int = 256
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
    """The beginnings of every request's candidates; node 0 is the empty one.

    Attributes:
      tokens: `[B, M]`; depths: `[B, M]`; paths: `[B, M, T]` (see `arrays`). Nodes that fill up a
        tree are roots.
    """

    tokens: TreeTokens
    depths: Depths
    paths: Paths


def plant(tables: Sequence[np.ndarray]) -> tuple[Trees, list[np.ndarray]]:
    """Lays out the trees of a batch, in numpy.

    Args:
      tables: of each request, the token sequences of its candidates `[C, T]`, each with its end of
        sequence, then 0; T is the same for all.

    Returns:
      trees of as many nodes as the largest needs, and of each request `[C]` the node at which each
      candidate ends (its end of sequence is no node).
    """
    sizes = [len(table) for table in tables]
    owner = np.repeat(np.arange(len(tables)), sizes)
    table = np.concatenate(tables).astype(np.int32)
    length = table.shape[1]
    body = np.count_nonzero(table, axis=1) - 1
    order = np.lexsort((*table.T[::-1], owner))
    table, body, owner = table[order], body[order], owner[order]

    # A row opens a node at every depth from where it leaves the row above it.
    leaves = np.ones((len(table), length), bool)
    leaves[1:] = table[1:] != table[:-1]
    leaves[1:, 0] |= owner[1:] != owner[:-1]
    inside = np.arange(length) < body[:, None]
    opens = np.logical_or.accumulate(leaves, axis=1) & inside
    row, column = np.nonzero(opens)
    counts = np.bincount(owner[row], minlength=len(tables))
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + 1

    path = np.zeros((len(table), length), np.int32)  # by row: the node of each depth but 0
    path[row, column] = number
    within = np.where(opens, np.arange(len(table))[:, None], 0)
    path = np.take_along_axis(path, np.maximum.accumulate(within, axis=0), axis=0)
    path = np.where(inside, path, 0)

    nodes = int(counts.max(initial=0)) + 1
    trees = Trees(
        tokens=np.zeros((len(tables), nodes), np.int32),
        depths=np.zeros((len(tables), nodes), np.int32),
        paths=np.zeros((len(tables), nodes, length), np.int32),
    )
    at = owner[row], number
    trees.tokens[at] = table[row, column]
    trees.depths[at] = column + 1
    above = np.where(np.arange(length - 1) <= column[:, None], path[row, :-1], 0)
    trees.paths[(*at, slice(1, None))] = above
    ends = np.zeros(len(table), np.int32)
    ends[order] = np.where(body > 0, path[np.arange(len(table)), np.maximum(body - 1, 0)], 0)
    return trees, np.split(ends, np.cumsum(sizes)[:-1])


def score_trees(
    model: Seq2Seq, params, read: ReadRequests, trees: Trees, alpha: float
) -> NodeScores:
    """The score of the query that ends at each node, as `beam.search` scores it: `[B, M]`."""
    total = model.apply(
        {"params": params},
        trees.tokens,
        trees.depths,
        trees.paths,
        read.cross,
        read.places,
        read.tokens,
        method="tree_scores",
    )
    return total / (trees.depths + 1).astype(jnp.float32) ** alpha
