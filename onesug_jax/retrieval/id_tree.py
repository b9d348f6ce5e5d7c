"""The tree of semantic ids: indexed queries sorted by id, and the beam search from coarse to fine.

PAPER.md section 2, points 4 and 5. A node of level l is the first l codes of an existing id. The
queries are laid out in id order, so the queries under a node are one range of positions, and its
children are one range of nodes. A node takes 14 bytes (start, first child, code, squared norm).
Most queries have a node of their own at the last levels, so the tree takes 18 to 60 bytes a query,
besides its vector.

The score of a node for a vector z is z.s - norm_weight * |s|^2, where s is the node's sum of
codewords. With norm_weight 1/2 it ranks by the distance |z - s|. z.s is summed from a table of the
products of z with every codeword, and |s|^2 is stored, so a step down multiplies no vectors.

Numpy only. `tree_search.py` has the vectors and cosines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.errors import UserError

_BLOCK = 65_536  # nodes whose partial sums are in memory at once


@dataclasses.dataclass(frozen=True)
class Level:
    """The M nodes of one level, in the order of their ids.

    Attributes:
      starts: [M + 1] int32, node j holds positions starts[j] : starts[j + 1].
      children: [M + 1] int32, the children of node j are nodes children[j] : children[j + 1] one
        level down; all zero at the last level.
      codes: [M] uint16, the last code of the node's id.
      norms: [M] float32, squared norm of the sum of its codewords.
    """

    starts: np.ndarray
    children: np.ndarray
    codes: np.ndarray
    norms: np.ndarray


@dataclasses.dataclass(frozen=True)
class IdTree:
    """All levels, coarse to fine, and the query at each position.

    Attributes:
      rows: [N] int32, number of the query at each position of the id order; queries that share a
        full id are in the order of their numbers.
      levels: one `Level` for each code of an id.
    """

    rows: np.ndarray
    levels: tuple[Level, ...]

    @classmethod
    def build(cls, ids: np.ndarray, codebooks: np.ndarray) -> IdTree:
        """Build the tree.

        Args:
          ids: [N, levels] integers, row i is the id of query i.
          codebooks: [levels, codes, d] float32.

        Raises:
          UserError: the ids do not fit the codebooks.
        """
        ids, codebooks = np.asarray(ids), np.asarray(codebooks)
        _check_ids(ids, *codebooks.shape[:2])
        rows = np.lexsort(ids.T[::-1]).astype(np.int32)
        ordered = ids[rows]
        begins = np.zeros(len(rows), bool)
        begins[:1] = True
        starts = []
        for codes in ordered.T:
            begins[1:] |= codes[1:] != codes[:-1]
            starts.append(np.append(np.flatnonzero(begins), len(rows)).astype(np.int32))
        levels = []
        for level, start in enumerate(starts):
            below = starts[level + 1] if level + 1 < len(starts) else None
            children = np.zeros_like(start) if below is None else np.searchsorted(below, start)
            path = ordered[start[:-1], : level + 1]
            levels.append(
                Level(
                    start,
                    children.astype(np.int32),
                    path[:, -1].astype(np.uint16),
                    _squared_norms(path, codebooks),
                )
            )
        return cls(rows, tuple(levels))

    def __len__(self) -> int:
        return len(self.rows)

    def nodes(self) -> list[int]:
        """Number of nodes of each level."""
        return [len(level.codes) for level in self.levels]

    def descend(
        self,
        dots: np.ndarray,
        probes: Sequence[int],
        norm_weight: float,
        breadth: int | None = None,
    ) -> list[np.ndarray]:
        """The nodes retained at each level, coarse to fine, in the order of their ids.

        At each level the children of the retained nodes are compared, and the `probes[level]`
        nearest are retained.

        Args:
          dots: [levels, codes] float32, products of the vector with every codeword.
          norm_weight: see the head of the file.
          breadth: about the most children that the retained nodes of a level may have in all; if
            they have more, fewer nodes are retained. It bounds the cost of a level, however large
            the shop. None: no bound.
        """
        retained: list[np.ndarray] = []
        nodes = np.arange(len(self.levels[0].codes))
        above: np.ndarray | float = 0.0
        for level, dot, keep in zip(self.levels, dots, probes, strict=True):
            if retained:
                parents, children = retained[-1], self.levels[len(retained) - 1].children
                starts = children.take(parents)
                sizes = children.take(parents + 1) - starts
                nodes, above = ranges(starts, sizes), np.repeat(above, sizes)
            scores = dot.take(level.codes.take(nodes))
            scores += above
            scores -= norm_weight * level.norms.take(nodes)
            best = largest(scores, keep)
            if breadth is not None:
                parents = nodes.take(best)
                below = int((level.children.take(parents + 1) - level.children.take(parents)).sum())
                if below > breadth:
                    fewer = max(len(best) * breadth // below, 1)
                    best = best.take(largest(scores.take(best), fewer))
            retained.append(nodes.take(best))
            above = scores.take(best) + norm_weight * level.norms.take(retained[-1])
        return retained

    def gather(
        self,
        dots: np.ndarray,
        probes: Sequence[int],
        least: int,
        *,
        norm_weight: float = 0.5,
        breadth: int | None = None,
        buckets: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of at least `least` queries (all, if there are fewer), fine to coarse.

        First come the queries under the finest retained nodes. While there are too few, those
        under the retained nodes a level up are added, and at last those under further nodes of the
        first level, nearest first.

        Returns:
          positions [n], each once, and [n] the widening at which each was found: 0 for the finest
          nodes, one more for every level up, then one more for every further node. The second
          array doubles the time; without `buckets` it is empty.
        """
        retained = self.descend(dots, probes, norm_weight, breadth)
        steps: list[np.ndarray] = []
        for level, nodes in zip(reversed(self.levels), reversed(retained), strict=True):
            starts = level.starts.take(nodes)
            sizes = level.starts.take(nodes + 1) - starts
            enough = int(sizes.sum()) >= least
            if buckets or enough or level is self.levels[0]:
                steps.append(ranges(starts, sizes))
            if enough:
                break
        else:
            steps += self._further(dots[0], retained[0], least - len(steps[-1]), norm_weight)
        if not buckets:
            # A coarse level contains the finer ones, so `steps` has the coarsest set alone.
            return np.concatenate(steps), np.zeros(0, np.int32)
        positions = np.concatenate(steps)
        widening = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
        positions, first = np.unique(positions, return_index=True)
        by_widening = np.argsort(widening[first], kind="stable")
        return positions[by_widening], widening[first][by_widening]

    def _further(
        self, dot: np.ndarray, retained: np.ndarray, least: int, norm_weight: float
    ) -> list[np.ndarray]:
        """Positions under the nearest first-level nodes that are not retained, node by node."""
        level = self.levels[0]
        order = np.argsort(norm_weight * level.norms - dot.take(level.codes), kind="stable")
        order = order[~np.isin(order, retained)]
        total = np.cumsum(level.starts[order + 1] - level.starts[order])
        order = order[: int(np.searchsorted(total, least)) + 1]
        return [np.arange(level.starts[node], level.starts[node + 1]) for node in order]

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree as flat arrays, level after level, for saving; `from_arrays` reads them back."""
        return {
            "rows": self.rows,
            **{
                field.name: np.concatenate([getattr(level, field.name) for level in self.levels])
                for field in dataclasses.fields(Level)
            },
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], nodes: Sequence[int]) -> IdTree:
        """The tree over views of flat arrays (memory maps stay on disk); `nodes` as `nodes()`."""
        levels, at = [], 0
        for number, count in enumerate(nodes):
            ends = slice(at + number, at + number + count + 1)  # one entry more than nodes a level
            own = slice(at, at + count)
            starts, children = arrays["starts"][ends], arrays["children"][ends]
            levels.append(Level(starts, children, arrays["codes"][own], arrays["norms"][own]))
            at += count
        return cls(arrays["rows"], tuple(levels))


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (sizes[0] of them), then starts[1], ...; [sum of sizes]."""
    ends = np.cumsum(sizes)
    if not len(ends):
        return np.zeros(0, np.int64)
    return np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Indices `[keep]` of the largest of `scores [N]`, ascending; of equal scores the first."""
    if keep >= len(scores):
        return np.arange(len(scores))
    if keep == 1:
        return np.array([np.argmax(scores)])
    # Partitioning the values and comparing is faster than `argpartition`.
    threshold = np.partition(scores, len(scores) - keep)[len(scores) - keep]
    chosen = np.flatnonzero(scores >= threshold)
    if len(chosen) > keep:
        ties = np.flatnonzero(scores[chosen] == threshold)
        chosen = np.delete(chosen, ties[len(ties) - (len(chosen) - keep) :])
    return chosen


def expected_codewords(
    ids: np.ndarray, embeddings: Any, levels: int, codes: int, block: int = 16_384
) -> np.ndarray:
    """Codewords in the space of the embeddings, for ids learnt in any space.

    The word of a code is the mean residual of the queries that have the code: their embeddings less
    the words of the levels before. So the words along an id add up to its expected embedding. For
    ids of a residual k-means these are its codebooks, except for ids that were moved afterwards.

    Args:
      ids: [N, levels].
      embeddings: [N, D]; read `block` rows at a time, once a level.
      codes: codes a level.

    Returns:
      [levels, codes, D] float32; zeros for a code that no query has.

    Raises:
      UserError: ids that do not fit these levels and codes.
    """
    _check_ids(ids, levels, codes)
    words = np.zeros((levels, codes, embeddings.shape[1]), np.float32)
    for level in range(len(words)):
        sums = np.zeros(words.shape[1:], np.float64)
        for begin in range(0, len(ids), block):
            path = ids[begin : begin + block]
            residuals = np.array(embeddings[begin : begin + block], np.float32)
            for before in range(level):
                residuals -= words[before].take(path[:, before], axis=0)
            order = np.argsort(path[:, level], kind="stable")
            present, first = np.unique(path[order, level], return_index=True)
            sums[present] += np.add.reduceat(residuals[order], first, axis=0)
        counts = np.bincount(ids[:, level], minlength=codes)
        words[level] = sums / np.maximum(counts, 1)[:, None]
    return words


def _check_ids(ids: np.ndarray, levels: int, codes: int) -> None:
    if ids.ndim != 2 or ids.shape[1] != levels or ids.dtype.kind not in "ui":
        raise UserError(
            f"semantic ids of shape {ids.shape}, {ids.dtype}: expected whole numbers [queries, "
            f"{levels}], one code a level. Make ids and quantiser in one run."
        )
    bad = np.flatnonzero(((ids < 0) | (ids >= codes)).any(axis=1))
    if len(bad):
        raise UserError(
            f"semantic ids, row {int(bad[0])}: expected codes from 0 to {codes - 1}, found "
            f"{ids[bad[0]].tolist()}. Make ids and quantiser in one run."
        )


def _squared_norms(path: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """[M] squared norms of the sums of codewords along [M, levels so far] codes."""
    norms = np.empty(len(path), np.float32)
    for begin in range(0, len(path), _BLOCK):
        block = path[begin : begin + _BLOCK]
        total = sum(codebooks[level][block[:, level]] for level in range(block.shape[1]))
        norms[begin : begin + _BLOCK] = np.einsum("md,md->m", total, total)
    return norms
