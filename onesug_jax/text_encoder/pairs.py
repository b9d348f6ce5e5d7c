"""The mined pairs as flat arrays: those that alignment trains on, and those held out to measure it.

There are two kinds (PAPER.md section 2, point 1): a prefix with a query searched from it, and two
queries that Swing or ItemCF found close. Both are read from WORK_DIR/mined. Texts stay in Arrow
columns and a pair is two numbers and a count, so tens of millions fit in memory. `logs/mining.py`
mines them.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint
from onesug_jax.logs.mined import file_of, read_table

KINDS = ("prefix", "query")
# kind -> table, and its columns of the anchor, the other text and their count
TABLES = {
    "prefix": ("prefix_query", "prefix", "query", "count"),
    "query": ("query_query", "query", "other", "users"),
}
WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": np.ones_like,
    "log": np.log1p,
    "sqrt": np.sqrt,
    "count": np.positive,
}
_BLOCK = 65_536


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of one kind: `anchors [P]`, `others [P]` int32 text numbers; `counts [P]` float64."""

    anchors: np.ndarray
    others: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.anchors)

    def take(self, which: np.ndarray) -> Pairs:
        """The pairs that a mask or an array of numbers selects."""
        return Pairs(self.anchors[which], self.others[which], self.counts[which])

    def digest(self) -> str:
        """A digest of the pairs, 16 hex digits."""
        return fingerprint(self.anchors, self.others, self.counts)


class Texts:
    """The Q indexed queries, numbered as in queries.parquet, then the prefixes.

    Attributes:
      queries: Q, the number of indexed queries.
      counts: `[Q]` int64, search counts of the queries.
      groups: `[T]` int32, equal for texts that differ only by spaces at the end ("nike ", "nike").
      hashes: `[T]` uint32 of the texts without these spaces; the same on every machine.
    """

    def __init__(self, queries: pa.ChunkedArray, counts: np.ndarray, prefixes: pa.ChunkedArray):
        self._all = pa.chunked_array([*queries.chunks, *prefixes.chunks], pa.large_string())
        self.counts = counts
        self.queries = len(queries)
        bare = pc.utf8_rtrim_whitespace(self._all)
        distinct = pc.unique(bare)
        self.groups = _numbers(bare, distinct)
        self.hashes = _hashes(distinct)[self.groups]

    def __len__(self) -> int:
        return len(self._all)

    def take(self, numbers: np.ndarray) -> list[str]:
        """The texts with these numbers."""
        return self._all.take(pa.array(numbers, pa.int64())).to_pylist()

    def sample(self, most: int) -> list[str]:
        """At most `most` of the texts, evenly spaced."""
        return self.take(np.arange(0, len(self), max(1, -(-len(self) // most))))


def read_pairs(mined: str) -> tuple[Texts, dict[str, Pairs]]:
    """Texts and pairs, by kind, of a folder of mined tables.

    Pairs whose texts differ only by spaces at the end are left out.

    Raises:
      UserError: a table is missing, lacks a column, or names a query that queries.parquet lacks.
    """
    table = read_table(mined, "queries", ["query", "count"])
    queries, counts = table["query"].cast(pa.large_string()), table["count"].to_numpy()
    if not len(queries):
        raise UserError(
            f"{os.path.join(mined, file_of('queries'))}: expected at least one query, found none; "
            "ingest a log with searches and mine it."
        )
    tables = {}
    for kind, (name, *columns) in TABLES.items():
        *sides, count = read_table(mined, name, columns).columns
        tables[kind] = (*(side.cast(pa.large_string()) for side in sides), count)
    prefixes = pc.unique(tables["prefix"][0])
    texts = Texts(queries, counts, pa.chunked_array([prefixes], pa.large_string()))
    indexed = queries.combine_chunks()
    pairs = {}
    for kind, (anchor, other, count) in tables.items():
        path = os.path.join(mined, file_of(TABLES[kind][0]))
        if kind == "prefix":
            anchors = _numbers(anchor, prefixes) + np.int32(texts.queries)
        else:
            anchors = _indexed(anchor, indexed, path)
        others = _indexed(other, indexed, path)
        rows = Pairs(anchors, others, count.to_numpy().astype(np.float64))
        pairs[kind] = rows.take(texts.groups[anchors] != texts.groups[others])
    return texts, pairs


def split(texts: Texts, pairs: dict[str, Pairs], held_out: float) -> tuple[dict, dict]:
    """(training pairs, held-out pairs), each by kind.

    A share `held_out` of all texts is held out, chosen by hash and so the same for every seed. The
    pairs with such an anchor are held out. Query pairs are symmetric, so a query pair with a
    held-out text on either side is not trained on.

    Raises:
      UserError: `held_out` is not a share.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out={held_out}: expected a share, at least 0 and below 1.")
    held = texts.hashes < held_out * 2**32
    train, dev = {}, {}
    for kind, part in pairs.items():
        anchor = held[part.anchors]
        either = anchor | held[part.others] if kind == "query" else anchor
        train[kind] = part.take(~either)
        dev[kind] = part.take(anchor)
    return train, dev


def sample(pairs: Pairs, most: int) -> Pairs:
    """At most `most` of the pairs, drawn uniformly without replacement, in their order."""
    if len(pairs) <= most:
        return pairs
    drawn = np.random.default_rng(0).choice(len(pairs), most, replace=False)
    return pairs.take(np.sort(drawn))


class Draw:
    """The pairs of a batch: a pure function of (seed, step).

    Args:
      pairs: by kind; if one kind has no pairs, the batch is of the other.
      query_share: share of query pairs in a batch.
      weighting: weight of a pair by its count, one of WEIGHTINGS.

    Raises:
      UserError: a setting is out of range.
    """

    def __init__(
        self,
        pairs: dict[str, Pairs],
        batch_size: int,
        query_share: float,
        weighting: str,
        seed: int,
    ):
        if not 0 <= query_share <= 1:
            raise UserError(f"query_share={query_share}: expected a share between 0 and 1.")
        if weighting not in WEIGHTINGS:
            raise UserError(
                f"weighting={weighting!r}: expected one of {', '.join(sorted(WEIGHTINGS))}."
            )
        if batch_size < 2:
            raise UserError(
                f"batch_size={batch_size}: expected 2 pairs or more; negatives come from the batch."
            )
        self._pairs = {kind: part for kind, part in pairs.items() if len(part)}
        self._seed = seed
        share = {"prefix": 1 - query_share, "query": query_share}
        if len(self._pairs) == 1:
            share = dict.fromkeys(self._pairs, 1.0)
        queries = round(batch_size * share.get("query", 0.0))
        self._sizes = {"prefix": batch_size - queries, "query": queries}
        self._ends = {
            kind: np.cumsum(WEIGHTINGS[weighting](part.counts))
            for kind, part in self._pairs.items()
        }

    def __call__(self, step: int) -> np.ndarray:
        """Text numbers `[B, 2]` of the pairs of a step, in random order."""
        rng = np.random.default_rng([self._seed, step])
        drawn = []
        for kind, part in sorted(self._pairs.items()):
            ends = self._ends[kind]
            rows = np.searchsorted(ends, rng.random(self._sizes[kind]) * ends[-1], side="right")
            rows = np.minimum(rows, len(part) - 1)
            drawn.append(np.stack([part.anchors[rows], part.others[rows]], axis=1))
        return rng.permutation(np.concatenate(drawn))


def _numbers(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """The index of each text in `values`, else -1; int32."""
    numbers = pc.fill_null(pc.index_in(column, value_set=values), -1)
    return numbers.to_numpy().astype(np.int32, copy=False)


def _indexed(column: pa.ChunkedArray, queries: pa.Array, path: str) -> np.ndarray:
    numbers = _numbers(column, queries)
    if len(numbers) and numbers.min() < 0:
        row = int(np.argmin(numbers))
        raise UserError(
            f"{path}: row {row}: the query {column[row].as_py()!r} is not in {file_of('queries')}; "
            "the tables come from different runs. Run mine again."
        )
    return numbers


def _hashes(texts: pa.Array) -> np.ndarray:
    hashes = np.empty(len(texts), np.uint32)
    for start in range(0, len(texts), _BLOCK):
        block: Sequence[str] = texts.slice(start, _BLOCK).to_pylist()
        hashes[start : start + len(block)] = [
            zlib.crc32(text.encode("utf-8", "surrogatepass")) for text in block
        ]
    return hashes
