"""The mined pairs as flat arrays: what alignment trains on, and what is held out to measure it.

Two kinds (PAPER.md section 2, point 1): a prefix and a query searched from it, and two queries that
Swing or ItemCF found close; both from the tables of WORK_DIR/mined. Texts stay in Arrow columns and
a pair is two numbers and a weight, so tens of millions fit. Mining them is `logs/mining.py`.
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
# kind -> table, columns of the anchor, the other text, and how often they were seen together
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
        """Those that a mask or numbers choose."""
        return Pairs(self.anchors[which], self.others[which], self.counts[which])

    def digest(self) -> str:
        """A digest of the pairs, 16 hex digits."""
        return fingerprint(self.anchors, self.others, self.counts)


class Texts:
    """The Q indexed queries, numbered as in queries.parquet, then the prefixes.

    Attributes:
      queries: Q, how many of the texts are indexed queries.
      counts: `[Q]` int64, how often each query was searched.
      groups: `[T]` int32, equal for texts that are equal up to spaces at the end ("nike ", "nike").
      hashes: `[T]` uint32 of the text without them; the same on every machine.
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
        """The texts of these numbers."""
        return self._all.take(pa.array(numbers, pa.int64())).to_pylist()

    def sample(self, most: int) -> list[str]:
        """At most `most` of the texts, evenly spaced."""
        return self.take(np.arange(0, len(self), max(1, -(-len(self) // most))))


def read_pairs(mined: str) -> tuple[Texts, dict[str, Pairs]]:
    """Texts and pairs, by kind, of a folder of mined tables.

    Pairs whose texts differ by spaces at the end only are left out: nothing is to be learnt there.

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
        *sides, seen = read_table(mined, name, columns).columns
        tables[kind] = (*(side.cast(pa.large_string()) for side in sides), seen)
    prefixes = pc.unique(tables["prefix"][0])
    texts = Texts(queries, counts, pa.chunked_array([prefixes], pa.large_string()))
    indexed = queries.combine_chunks()
    pairs = {}
    for kind, (anchor, other, seen) in tables.items():
        path = os.path.join(mined, file_of(TABLES[kind][0]))
        if kind == "prefix":
            anchors = _numbers(anchor, prefixes) + np.int32(texts.queries)
        else:
            anchors = _indexed(anchor, indexed, path)
        others = _indexed(other, indexed, path)
        found = Pairs(anchors, others, seen.to_numpy().astype(np.float64))
        pairs[kind] = found.take(texts.groups[anchors] != texts.groups[others])
    return texts, pairs


def split(texts: Texts, pairs: dict[str, Pairs], held_out: float) -> tuple[dict, dict]:
    """(pairs to train on, pairs held out), each by kind.

    A share `held_out` of all texts, chosen by their hash and so the same for every seed, is held
    out: pairs with such an anchor are only measured on. A query pair also counts the other way
    round, so one with a held-out text on either side is not trained on.

    Raises:
      UserError: `held_out` is not a share.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out={held_out}: expected a share, at least 0 and below 1.")
    held = texts.hashes < held_out * 2**32
    train, dev = {}, {}
    for kind, found in pairs.items():
        anchor = held[found.anchors]
        touched = anchor | held[found.others] if kind == "query" else anchor
        train[kind] = found.take(~touched)
        dev[kind] = found.take(anchor)
    return train, dev


def sample(pairs: Pairs, most: int) -> Pairs:
    """At most `most` of the pairs, drawn uniformly without replacement, in their order."""
    if len(pairs) <= most:
        return pairs
    drawn = np.random.default_rng(0).choice(len(pairs), most, replace=False)
    return pairs.take(np.sort(drawn))


class Draw:
    """Which pairs make up a step's batch: a pure function of (seed, step).

    Args:
      pairs: by kind; a kind without pairs leaves its share to the other.
      query_share: share of query pairs in a batch.
      weighting: how often a pair is drawn, by how often it was seen: one of WEIGHTINGS.

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
        self._pairs = {kind: found for kind, found in pairs.items() if len(found)}
        self._seed = seed
        share = {"prefix": 1 - query_share, "query": query_share}
        if len(self._pairs) == 1:
            share = dict.fromkeys(self._pairs, 1.0)
        queries = round(batch_size * share.get("query", 0.0))
        self._sizes = {"prefix": batch_size - queries, "query": queries}
        self._ends = {
            kind: np.cumsum(WEIGHTINGS[weighting](found.counts))
            for kind, found in self._pairs.items()
        }

    def __call__(self, step: int) -> np.ndarray:
        """Text numbers `[B, 2]` of the step's pairs, in mixed order."""
        rng = np.random.default_rng([self._seed, step])
        drawn = []
        for kind, found in sorted(self._pairs.items()):
            ends = self._ends[kind]
            where = np.searchsorted(ends, rng.random(self._sizes[kind]) * ends[-1], side="right")
            where = np.minimum(where, len(found) - 1)
            drawn.append(np.stack([found.anchors[where], found.others[where]], axis=1))
        return rng.permutation(np.concatenate(drawn))


def _numbers(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Place of each text among `values`, -1 for one that is not there; int32."""
    places = pc.fill_null(pc.index_in(column, value_set=values), -1)
    return places.to_numpy().astype(np.int32, copy=False)


def _indexed(column: pa.ChunkedArray, queries: pa.Array, path: str) -> np.ndarray:
    numbers = _numbers(column, queries)
    if len(numbers) and numbers.min() < 0:
        row = int(np.argmin(numbers))
        raise UserError(
            f"{path}: row {row}: the query {column[row].as_py()!r} is not in {file_of('queries')} "
            "beside it; the tables come from different runs. Run mine again."
        )
    return numbers


def _hashes(texts: pa.Array) -> np.ndarray:
    found = np.empty(len(texts), np.uint32)
    for start in range(0, len(texts), _BLOCK):
        block: Sequence[str] = texts.slice(start, _BLOCK).to_pylist()
        found[start : start + len(block)] = [
            zlib.crc32(text.encode("utf-8", "surrogatepass")) for text in block
        ]
    return found
