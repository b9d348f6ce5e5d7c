"""Clustering-based search: the nearest indexed queries of a vector, by comparing a few buckets.

PAPER.md section 2, point 5. The tree of semantic ids gives candidates, fine to coarse
(`id_tree.py`). They are ranked by cosine with the stored vectors, which are in id order, so that a
bucket is contiguous in the file.

The paper follows one path down, by the distance of latents, and takes finer buckets first: `PAPER`.
That misses neighbours just across the border of a bucket. So by default each level retains many
nodes (a beam), and all candidates are ranked by cosine. Nodes are scored by expected cosine: a
coarse node's sum of codewords is short, so that it would seem near by distance.

A stored vector takes D + 4 bytes (int8, one float a vector: 1.3 GB for ten million of 128, 3.9 GB
of 384) or 2 D + 4 (float16, which numpy multiplies slowly). Numpy only.
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
# `norm_weight` of `id_tree`; 1/2 is the distance. For the cosine, 0 would be right if the residuals
# were independent of the searched vector; 0.1 to 0.25 found most neighbours of real embeddings.
_NORM_WEIGHT = {"cosine": 0.15, "latent": 0.5}
_ROWS = 4096  # vectors compared, or searched for, at a time


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The width of the search.

    Attributes:
      probes: nodes retained at each level of the ids, coarse to fine; one number a level. The
        default suits up to two million queries; docs/speed.md has numbers for ten million.
      candidates: widen to coarser buckets until this many queries (or k, if more) are found.
      order: "nearest" ranks all candidates by cosine; "bucket" puts those of finer buckets first,
        and ranks by cosine inside a bucket only.
      measure: how nodes are compared: "cosine", of the embedding with the expected embedding of the
        node, or "latent", the distance of the latent to the quantiser's codewords.
      limit: most candidates to compare; a larger bucket is cut. So a bucket that holds half the
        shop (a collapsed codebook) cannot stall a service.
      breadth: about the most nodes compared at a level: the level before retains fewer if they
        have more children. It bounds the cost of a search, however large the shop.

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
    """Compressed unit vectors: row times scale has length 1 (0 for a vector of zeros).

    Attributes:
      rows: [N, D] int8 or float16.
      scales: [N] float32.
    """

    rows: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, kind: str = "int8") -> StoredVectors:
        """Compress vectors [N, D]; `kind` is a key of KINDS."""
        vectors = np.asarray(vectors, np.float32)
        maximum = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        scaled = vectors * (127 / np.where(maximum > 0, maximum, 1))
        rows = (np.rint(scaled) if kind == "int8" else scaled).astype(KINDS[kind])
        lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
        return cls(
            rows, np.where(lengths > 0, 1 / np.maximum(lengths, 1e-30), 0).astype(np.float32)
        )

    def cosines(self, positions: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """[n] cosines of the vectors at `positions` [n] with the unit vector `unit` [D]."""
        cosines = np.empty(len(positions), np.float32)
        for begin in range(0, len(positions), _ROWS):
            block = positions[begin : begin + _ROWS]
            product = self.rows.take(block, axis=0).astype(np.float32) @ unit
            cosines[begin : begin + _ROWS] = product * self.scales.take(block)
        return cosines


class TreeSearch:
    """Nearest indexed queries of any vector.

    Args:
      tree: the indexed queries, with the norms of these codewords.
      vectors: vectors of the queries, in the tree's order of positions.
      codewords: [levels, codes, d] float32, for `config.measure`.
      config: the width of the search.
      latents: unit embeddings [B, D] -> [B, d], the space of the codewords; None: the identity.

    Raises:
      UserError: the config does not have one number of probes for each level of the ids.
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

        Returns:
          numbers [B, k] int32 and cosines [B, k] float32, best first; equal cosines in the order of
          the queries. If there are fewer queries, the rest is -1 and -inf.

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
                    f"search, row {row}: expected a vector of finite numbers, found NaN or "
                    "infinity. Look for a diverged encoder."
                )
            units = block / np.where(lengths > 0, lengths, 1)
            latents = units if self._latents is None else self._latents(units)
            dots = (latents @ self._codewords.T).reshape(-1, *self._levels)
            for row, (unit, dot) in enumerate(zip(units, dots, strict=True), begin):
                best, values = self._search_one(unit, dot, k)
                numbers[row, : len(best)], cosines[row, : len(best)] = best, values
        return numbers, cosines

    def _search_one(
        self, unit: np.ndarray, dots: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Up to k numbers and cosines for one unit vector and its table of dot products."""
        config, buckets = self.config, self.config.order == "bucket"
        positions, widening = self.tree.gather(
            dots,
            config.probes,
            max(k, config.candidates),
            norm_weight=_NORM_WEIGHT[config.measure],
            breadth=config.breadth,
            buckets=buckets,
        )
        positions, widening = positions[: config.limit], widening[: config.limit]
        cosines = self.vectors.cosines(positions, unit)
        if not buckets and len(cosines) > k:
            # Only the k nearest, with ties of the k-th, need sorting.
            near = np.flatnonzero(cosines >= np.partition(cosines, -k)[-k])
            positions, cosines = positions.take(near), cosines.take(near)
        numbers = self.tree.rows.take(positions)
        keys: Sequence[np.ndarray] = (
            (numbers, -cosines, widening) if buckets else (numbers, -cosines)
        )
        best = np.lexsort(keys)[:k]
        return numbers.take(best), cosines.take(best)
