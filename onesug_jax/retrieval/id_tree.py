"""The tree of semantic ids: indexed queries filed by their ids, and the walk from coarse to fine.

PAPER.md section 2, points 4 and 5. A node of level l is the first l codes of an id that exists; the
queries are laid out in id order, so the queries under a node are one range of positions, and so are
its children. A node costs 14 bytes (start, first child, code, squared norm); most queries have a
node of their own at the last levels, so the tree takes 18 to 60 bytes a query, besides its vector.

The score of a node for a vector z uses the node's sum of codewords s: z.s - lean * |s|^2.
With lean 1/2 that is the order of the distance |z - s|. z.s adds up from a table of z with every
codeword, |s|^2 is stored; so a step down reads numbers and multiplies no vectors.

Numpy only. Vectors and cosines are `tree_search.py`'s; how ids are learnt is the quantiser's.
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
      children: [M + 1] int32, its children are nodes children[j] : children[j + 1] one level down;
        all zero at the last level.
      codes: [M] uint16, the last code of the node's id.
      norms: [M] float32, squared norm of the sum of its codewords.
    """

    starts: np.ndarray
    children: np.ndarray
    codes: np.ndarray
    norms: np.ndarray


@dataclasses.dataclass(frozen=True)
class IdTree:
    """All levels, coarse to fine, and which query stands at each position.

    Attributes:
      rows: [N] int32, number of the query at each position of the id order; queries that share a
        full id stand in the order of their numbers.
      levels: one `Level` for each code of an id.
    """

    rows: np.ndarray
    levels: tuple[Level, ...]

    @classmethod
    def build(cls, ids: np.ndarray, codebooks: np.ndarray) -> IdTree:
        """File queries under their ids.

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
        """How many nodes each level has."""
        return [len(level.codes) for level in self.levels]

    def descend(
        self, dots: np.ndarray, probes: Sequence[int], lean: float, breadth: int | None = None
    ) -> list[np.ndarray]:
        """The nodes retained at each level, coarse to fine, in the order of their ids.

        At each level the children of the retained nodes are compared, and the `probes[level]`
        nearest are retained.

        Args:
          dots: [levels, codes] float32, the vector times every codeword.
          probes: how many nodes to keep at each level.
          lean: see the head of the file.
          breadth: where those have more children than this in all, the nearest that have about
            so many. It bounds the cost of a level, however large the shop. None: any number.
        """
        retained: list[np.ndarray] = []
        nodes = np.arange(len(self.levels[0].codes))
        above: np.ndarray | float = 0.0
        for level, dot, keep in zip(self.levels, dots, probes, strict=True):
            if retained:
                parents, children = retained[-1], self.levels[len(retained) - 1].children
                first = children.take(parents)
                many = children.take(parents + 1) - first
                nodes, above = ranges(first, many), np.repeat(above, many)
            scores = dot.take(level.codes.take(nodes))
            scores += above
            scores -= lean * level.norms.take(nodes)
            chosen = largest(scores, keep)
            if breadth is not None:
                found = nodes.take(chosen)
                below = int((level.children.take(found + 1) - level.children.take(found)).sum())
                if below > breadth:
                    fewer = max(len(chosen) * breadth // below, 1)
                    chosen = chosen.take(largest(scores.take(chosen), fewer))
            retained.append(nodes.take(chosen))
            above = scores.take(chosen) + lean * level.norms.take(retained[-1])
        return retained

    def gather(
        self,
        dots: np.ndarray,
        probes: Sequence[int],
        wanted: int,
        *,
        lean: float = 0.5,
        breadth: int | None = None,
        buckets: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of at least `wanted` queries (all, if there are fewer), fine to coarse.

        The queries under the finest retained nodes; while these are fewer than wanted, those under
        the retained nodes a level up; at last further nodes of the first level, nearest first.

        Returns:
          positions [n], each once, and [n] the widening at which each was found: 0 the finest, one
          more for every level up, then one more for every further node. Without `buckets` the
          second array is empty; it costs about as much again.
        """
        retained = self.descend(dots, probes, lean, breadth)
        steps: list[np.ndarray] = []
        for level, nodes in zip(reversed(self.levels), reversed(retained), strict=True):
            starts = level.starts.take(nodes)
            many = level.starts.take(nodes + 1) - starts
            enough = int(many.sum()) >= wanted
            if buckets or enough or level is self.levels[0]:
                steps.append(ranges(starts, many))
            if enough:
                break
        else:
            steps += self._further(dots[0], retained[0], wanted - len(steps[-1]), lean)
        if not buckets:
            # The sets of the levels contain one another; only further nodes add to the coarsest.
            return np.concatenate(steps), np.zeros(0, np.int32)
        positions = np.concatenate(steps)
        widening = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
        positions, first = np.unique(positions, return_index=True)
        by_widening = np.argsort(widening[first], kind="stable")
        return positions[by_widening], widening[first][by_widening]

    def _further(
        self, dot: np.ndarray, retained: np.ndarray, wanted: int, lean: float
    ) -> list[np.ndarray]:
        """Positions under the nearest first-level nodes that are not retained, node by node."""
        level = self.levels[0]
        order = np.argsort(lean * level.norms - dot.take(level.codes), kind="stable")
        order = order[~np.isin(order, retained)]
        held = np.cumsum(level.starts[order + 1] - level.starts[order])
        order = order[: int(np.searchsorted(held, wanted)) + 1]
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
        for number, many in enumerate(nodes):
            ends = slice(at + number, at + number + many + 1)  # one entry more than nodes a level
            own = slice(at, at + many)
            starts, children = arrays["starts"][ends], arrays["children"][ends]
            levels.append(Level(starts, children, arrays["codes"][own], arrays["norms"][own]))
            at += many
        return cls(arrays["rows"], tuple(levels))


def ranges(starts: np.ndarray, many: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (many[0] of them), then starts[1], ...; [sum of many]."""
    ends = np.cumsum(many)
    if not len(ends):
        return np.zeros(0, np.int64)
    return np.arange(ends[-1]) + np.repeat(starts - ends + many, many)


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Places `[keep]` of the largest of `scores [N]`, ascending; of equal ones the first."""
    if keep >= len(scores):
        return np.arange(len(scores))
    if keep == 1:
        return np.array([np.argmax(scores)])
    # A partition of values and a comparison: faster than a partition of places.
    least = np.partition(scores, len(scores) - keep)[len(scores) - keep]
    chosen = np.flatnonzero(scores >= least)
    if len(chosen) > keep:
        level = np.flatnonzero(scores[chosen] == least)
        chosen = np.delete(chosen, level[len(level) - (len(chosen) - keep) :])
    return chosen


def expected_codewords(
    ids: np.ndarray, embeddings: Any, levels: int, codes: int, block: int = 16_384
) -> np.ndarray:
    """Codewords in the space of the embeddings, for ids learnt in any space.

    Level by level, a code's word is the mean, over the queries that have it, of what the words of
    the levels before leave over; so the words along an id add up to the vector expected of it.
    Ids of a residual k-means get its own codebooks back, up to queries filed elsewhere since.

    Args:
      ids: [N, levels].
      embeddings: [N, D]; read `block` rows at a time, once a level.
      levels: how many codes an id has.
      codes: how many a level has to choose from.

    Returns:
      [levels, codes, D] float32; zeros for a code no query has.

    Raises:
      UserError: ids with other codes.
    """
    _check_ids(ids, levels, codes)
    words = np.zeros((levels, codes, embeddings.shape[1]), np.float32)
    for level in range(len(words)):
        sums = np.zeros(words.shape[1:], np.float64)
        for begin in range(0, len(ids), block):
            path = ids[begin : begin + block]
            left = np.array(embeddings[begin : begin + block], np.float32)
            for before in range(level):
                left -= words[before].take(path[:, before], axis=0)
            order = np.argsort(path[:, level], kind="stable")
            present, first = np.unique(path[order, level], return_index=True)
            sums[present] += np.add.reduceat(left[order], first, axis=0)
        queries = np.bincount(ids[:, level], minlength=codes)
        words[level] = sums / np.maximum(queries, 1)[:, None]
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
