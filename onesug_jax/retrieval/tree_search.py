"""Clustering-based search: a vector in, the nearest indexed queries out, for a few buckets' cost.

PAPER.md section 2, point 5. The tree of semantic ids gives candidates, fine to coarse
(`id_tree.py`); here they are ranked by cosine with the stored vectors, which lie in id order, so
that a bucket is one stretch of the file.

The paper follows one path down, by the distance of latents, and takes finer buckets first: `PAPER`.
That misses neighbours just across the border of a bucket, so by default each level retains many
nodes (a beam), all candidates are ranked by cosine, and nodes are scored by expected cosine rather
than by distance: a coarse node's sum of codewords is short, and by distance it would seem near.

A stored vector takes D + 4 bytes (int8, one float a vector: 1.3 GB for ten million of 128, 3.9 GB
of 384) or 2 D + 4 (float16, which numpy multiplies slowly). Numpy only; nothing here learns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.retrieval.id_tree import IdTree

KINDS = {"int8": np.int8, "float16": np.float16}
MEASURES = ("cosine", "latent")
ORDERS = ("nearest", "bucket")
# How far |s|^2 counts against a node (`id_tree`). For the cosine 0 would be right if what a sum
# leaves over were independent of what is searched for; 0.1 to 0.25 found most neighbours of real
# query embeddings. 1/2 is the distance.
_LEAN = {"cosine": 0.15, "latent": 0.5}
_ROWS = 4096  # vectors compared, or looked up, at a time


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The width of the search.

    Attributes:
      probes: nodes retained at each level of the ids, coarse to fine; one number a level. These
        serve up to a million queries or two; docs/speed.md has those of ten million.
      candidates: widen to coarser buckets until this many queries (or k, if more) are found.
      order: "nearest" ranks all candidates by cosine; "bucket" puts those of finer buckets first,
        and ranks by cosine inside a bucket only.
      measure: what makes a node near, on the way down: "cosine", the embedding's with what the id
        is expected to hold, or "latent", the latent's distance to the quantiser's codewords.
      limit: at most this many candidates are compared, so that a bucket which holds half the shop
        (a collapsed codebook) cannot stall a service; a larger bucket is cut short.
      breadth: nodes compared at a level, about: a level up retains fewer where those would have
        more children. It bounds a look-up's cost, however large the shop.

    Raises:
      UserError: a number below 1, or an unknown order or measure.

    Examples:
      >>> from onesug_jax import SearchConfig
      >>> SearchConfig(probes=(8, 64), candidates=100).order
      'nearest'
    """

    probes: tuple[int, ...] = (192, 4096, 2048, 1024)
    candidates: int = 256
    order: str = "nearest"
    measure: str = "cosine"
    limit: int = 100_000
    breadth: int = 16_384

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(self.probes))
        if not self.probes or min(self.probes) < 1:
            raise UserError(
                f"SearchConfig.probes={self.probes}: expected a whole number of 1 or more for each "
                "level of the semantic ids."
            )
        for name in ("breadth", "candidates", "limit"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"SearchConfig.{name}={getattr(self, name)!r}: expected a whole number of 1 or "
                    "more."
                )
        for name, choices in (("order", ORDERS), ("measure", MEASURES)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"SearchConfig.{name}={getattr(self, name)!r}: expected one of {choices}."
                )


PAPER = SearchConfig(probes=(1, 1, 1, 1), candidates=1, order="bucket", measure="latent")


@dataclasses.dataclass(frozen=True)
class StoredVectors:
    """Compact unit vectors: row times scale has length 1 (0 for a vector of zeros).

    Attributes:
      rows: [N, D] int8 or float16.
      scales: [N] float32.
    """

    rows: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, kind: str = "int8") -> StoredVectors:
        """Store [N, D] vectors, one block of them at a time; `kind` is a key of KINDS."""
        vectors = np.asarray(vectors, np.float32)
        top = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        spread = vectors * (127 / np.where(top > 0, top, 1))
        rows = (np.rint(spread) if kind == "int8" else spread).astype(KINDS[kind])
        lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
        return cls(
            rows, np.where(lengths > 0, 1 / np.maximum(lengths, 1e-30), 0).astype(np.float32)
        )

    def cosines(self, positions: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """[n] cosines of the vectors at `positions` [n] with the unit vector `unit` [D]."""
        found = np.empty(len(positions), np.float32)
        for begin in range(0, len(positions), _ROWS):
            block = positions[begin : begin + _ROWS]
            product = self.rows.take(block, axis=0).astype(np.float32) @ unit
            found[begin : begin + _ROWS] = product * self.scales.take(block)
        return found


class TreeSearch:
    """Nearest indexed queries of any vector.

    Args:
      tree: queries under their ids, with the norms of these codewords.
      vectors: theirs, in the tree's order of positions.
      codewords: [levels, codes, d] float32: those `config.measure` speaks of.
      config: how wide to look.
      latents: [B, D] unit embeddings to [B, d], the space of the codewords; None: the same.

    Raises:
      UserError: the config does not name as many probes as the ids have levels.
    """

    def __init__(
        self,
        tree: IdTree,
        vectors: StoredVectors,
        codewords: np.ndarray,
        config: SearchConfig | None = None,
        latents: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.config = config or SearchConfig()
        if len(self.config.probes) != len(tree.levels):
            raise UserError(
                f"SearchConfig.probes={self.config.probes}: expected {len(tree.levels)} numbers, "
                "one for each level of the semantic ids."
            )
        self.tree, self.vectors, self._latents = tree, vectors, latents
        self._levels = codewords.shape[:2]
        self._codewords = np.asarray(codewords, np.float32).reshape(-1, codewords.shape[2])

    def search(self, e: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best indexed queries of each vector.

        Args:
          e: [B, D] or [D] (then B = 1), of any length above 0.
          k: how many.

        Returns:
          numbers [B, k] int32, -1 where the queries are fewer, and cosines [B, k] float32, -inf
          there. Best first; equal cosines in the order of the queries.

        Raises:
          UserError: vectors of another dimension than the stored ones, or not finite.
        """
        e = np.atleast_2d(np.asarray(e, np.float32))
        dimension = self.vectors.rows.shape[1]
        if e.ndim != 2 or e.shape[1] != dimension:
            raise UserError(
                f"search for vectors of shape {e.shape}: expected [B, {dimension}], as the indexed "
                "queries have. Use the encoder the index was made with."
            )
        numbers = np.full((len(e), max(k, 0)), -1, np.int32)
        cosines = np.full((len(e), max(k, 0)), -np.inf, np.float32)
        for begin in range(0, len(e) if k > 0 else 0, _ROWS):
            block = e[begin : begin + _ROWS]
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            if not np.isfinite(lengths).all():
                row = begin + int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
                raise UserError(
                    f"search, row {row}: expected a vector of finite numbers, found one that is "
                    "not. Look for a diverged encoder."
                )
            units = block / np.where(lengths > 0, lengths, 1)
            latents = units if self._latents is None else self._latents(units)
            dots = (latents @ self._codewords.T).reshape(-1, *self._levels)
            for row, (unit, dot) in enumerate(zip(units, dots, strict=True), begin):
                found, near = self._one(unit, dot, k)
                numbers[row, : len(found)], cosines[row, : len(found)] = found, near
        return numbers, cosines

    def _one(self, unit: np.ndarray, dots: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to k numbers and cosines for one unit vector and its table of dot products."""
        config, buckets = self.config, self.config.order == "bucket"
        wanted = max(k, config.candidates)
        positions, widening = self.tree.gather(
            dots,
            config.probes,
            wanted,
            lean=_LEAN[config.measure],
            breadth=config.breadth,
            buckets=buckets,
        )
        positions, widening = positions[: config.limit], widening[: config.limit]
        cosines = self.vectors.cosines(positions, unit)
        if not buckets and len(cosines) > k:
            # Only those at least as near as the k-th need sorting; ties with it stay in.
            near = np.flatnonzero(cosines >= np.partition(cosines, -k)[-k])
            positions, cosines = positions.take(near), cosines.take(near)
        numbers = self.tree.rows.take(positions)
        keys: Sequence[np.ndarray] = (
            (numbers, -cosines, widening) if buckets else (numbers, -cosines)
        )
        best = np.lexsort(keys)[:k]
        return numbers.take(best), cosines.take(best)
