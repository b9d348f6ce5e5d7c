"""Most popular completion: the known queries that start with the prefix, most searched first.

It is the yardstick every model is scored against, the context of a request before related queries
exist, and the last rung of a service under pressure; so it needs numpy alone, loads by memory map,
and answers in microseconds. The match is exact, code point by code point: text is normalised once,
by `logs.schema`, before it comes here. Typing mistakes are not mended here: a prefix no query
starts with gets an empty list.
"""

from __future__ import annotations

import collections
import functools
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from onesug_jax.errors import UserError

_TEXT, _OFFSETS, _COUNTS = "queries.txt", "offsets.npy", "counts.npy"
_SMALL_RANGE = 256  # ranges up to this many queries are ranked anew each time, larger ones once
_KEPT = 64  # how many of a large range are remembered, if not more are asked for


class _EncodedQueries(Sequence):
    """Distinct queries as UTF-8 in one block, sorted: byte order is code point order."""

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self.block, self.offsets = block, offsets
        self._bytes = memoryview(block)
        self._offsets = memoryview(offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def encoded(self, index: int) -> bytes:
        return bytes(self._bytes[self._offsets[index] : self._offsets[index + 1] - 1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError("query number out of range")
        return _decode(self.encoded(index))

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{len(self)} queries>"


class _Bytes:
    """The same sequence as bytes: what bisect compares."""

    def __init__(self, queries: _EncodedQueries):
        self._at, self._length = queries.encoded, len(queries)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> bytes:
        return self._at(index)


class CompletionIndex:
    """Distinct queries in code point order with how often each was searched.

    `queries`: a sequence of N strings, sorted; `counts`: [N] int64, all positive.
    """

    def __init__(self, queries: _EncodedQueries, counts: np.ndarray, *, cache: int = 65_536):
        self.queries, self.counts = queries, counts
        self._cache = cache
        self._prepare()

    def _prepare(self) -> None:
        self._keys = _Bytes(self.queries)
        self._remembered = functools.lru_cache(maxsize=self._cache)(self._rank)

    @classmethod
    def from_counts(cls, queries: Sequence[str], counts: Sequence[int]) -> CompletionIndex:
        """Build from queries and counts; the same query twice is added up, zero is left out.

        Raises ValueError for a negative count, unequal lengths, or a query that is empty or holds a
        line end.
        """
        if len(queries) != len(counts):
            raise ValueError(f"{len(queries)} queries but {len(counts)} counts")
        table: dict[bytes, int] = collections.defaultdict(int)
        for query, count in zip(queries, counts, strict=True):
            if count < 0:
                raise ValueError(f"query {query!r} has the negative count {count}")
            if not query or "\n" in query:
                raise ValueError(f"a query must be one line of text, found {query!r}")
            if count:
                table[_encode(query)] += int(count)
        ordered = sorted(table)
        block = np.frombuffer(b"".join(text + b"\n" for text in ordered), np.uint8)
        lengths = np.fromiter((len(text) + 1 for text in ordered), np.int64, len(ordered))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        values = np.fromiter((table[text] for text in ordered), np.int64, len(ordered))
        return cls(_EncodedQueries(block, offsets), values)

    @classmethod
    def from_log(cls, train_parquet: str) -> CompletionIndex:
        """Count the searched queries of a Parquet log in the schema, one batch of rows at a time.

        Raises UserError if the file is missing, is not Parquet, or has no `query` column.
        """
        table: collections.Counter[str] = collections.Counter()
        for column in _query_batches(str(train_parquet)):
            for pair in column.value_counts().to_pylist():
                if pair["values"]:
                    table[pair["values"]] += pair["counts"]
        if not table:
            raise UserError(
                f"{train_parquet}: expected at least one searched query, found none; ingest a "
                f"log with rows"
            )
        return cls.from_counts(list(table), list(table.values()))

    def __len__(self) -> int:
        return len(self.counts)

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last number of the queries that start with `prefix`."""
        key = _encode(prefix)
        if not key:
            return 0, len(self)
        # No UTF-8 byte is 0xFF, so the last byte plus one is the exact upper bound.
        above = key[:-1] + bytes([key[-1] + 1])
        first = bisect_left(self._keys, key)
        return first, bisect_left(self._keys, above, first)

    def starts(self, prefix: str) -> bool:
        """Whether any known query starts with `prefix` (a query starts with itself)."""
        first, last = self.range(prefix)
        return first < last

    def find(self, query: str) -> int:
        """Number of `query` in `queries`, or -1 if it is unknown."""
        key = _encode(query)
        at = bisect_left(self._keys, key)
        return at if at < len(self) and self._keys[at] == key else -1

    def count(self, query: str) -> int:
        """How often `query` was searched; 0 for an unknown one."""
        at = self.find(query)
        return int(self.counts[at]) if at >= 0 else 0

    def total(self, prefix: str) -> int:
        """How many searches were for a query that starts with `prefix`."""
        first, last = self.range(prefix)
        return int(self.counts[first:last].sum())

    def complete(self, prefix: str, k: int, without: str | None = None) -> list[str]:
        """The k most searched queries that start with `prefix`, best first, ties alphabetical.

        `without` leaves one occurrence of that query out of the counts, so that a training row does
        not see itself; a query whose count becomes zero disappears. Fewer than k known: a shorter
        list.
        """
        if k <= 0:
            return []
        best = self.top(prefix, k + 1)
        if without is not None and without.startswith(prefix):
            best = self._leave_one_out(best, self.find(without))
        return [self.queries[i] for i in best[:k]]

    def top(self, prefix: str, k: int) -> list[int]:
        """Numbers of the k most searched queries under `prefix`, in the order of `complete`."""
        first, last = self.range(prefix)
        if last - first <= _SMALL_RANGE:
            return self._rank(first, last, k)
        kept = _KEPT
        while kept < k:
            kept *= 2
        return self._remembered(first, last, kept)[:k]

    def _rank(self, first: int, last: int, k: int) -> list[int]:
        """Best k of queries[first:last] by (count, largest first; number, smallest first)."""
        counts = self.counts[first:last]
        if len(counts) <= k:
            chosen = np.arange(len(counts))
        else:
            threshold = np.partition(counts, len(counts) - k)[len(counts) - k]
            above = np.flatnonzero(counts > threshold)
            level = np.flatnonzero(counts == threshold)[: k - len(above)]
            chosen = np.concatenate([above, level])
        order = np.lexsort((chosen, -counts[chosen]))
        return (chosen[order] + first).tolist()

    def _leave_one_out(self, best: list[int], left_out: int) -> list[int]:
        """`best` with one search less of `left_out`: it can only fall, others keep their order."""
        if left_out not in best:
            return best
        others = [i for i in best if i != left_out]
        count = int(self.counts[left_out]) - 1
        if count == 0:
            return others
        place = (-count, left_out)
        before = sum((-int(self.counts[i]), i) < place for i in others)
        return [*others[:before], left_out, *others[before:]]

    def save(self, folder: str) -> None:
        """Write the queries (text, one a line) and two number arrays into `folder`."""
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, _TEXT), "wb") as file:
            file.write(self.queries.block.data)
        np.save(os.path.join(folder, _OFFSETS), self.queries.offsets)
        np.save(os.path.join(folder, _COUNTS), self.counts)

    @classmethod
    def load(cls, folder: str) -> CompletionIndex:
        """Open a saved index by memory map; UserError if files are missing or do not agree."""
        paths = [os.path.join(folder, name) for name in (_TEXT, _OFFSETS, _COUNTS)]
        for path in paths:
            if not os.path.isfile(path):
                raise UserError(
                    f"{path}: expected a saved completion index, found no such file; make it again"
                )
        size = os.path.getsize(paths[0])
        block = np.memmap(paths[0], np.uint8, "r") if size else np.zeros(0, np.uint8)
        try:
            offsets, counts = (
                np.load(path, mmap_mode="r", allow_pickle=False) for path in paths[1:]
            )
        except ValueError as error:
            raise UserError(
                f"{folder}: the completion index is damaged ({error}); make it again"
            ) from error
        if len(offsets) != len(counts) + 1 or int(offsets[-1]) != size:
            raise UserError(
                f"{folder}: the completion index is damaged: {len(counts)} counts, "
                f"{len(offsets)} offsets up to "
                f"{int(offsets[-1]) if len(offsets) else 0}, {size} bytes of text; make it again"
            )
        return cls(_EncodedQueries(block, offsets), counts)

    def __getstate__(self) -> dict:
        queries = self.queries
        return {
            "block": np.asarray(queries.block),
            "offsets": np.asarray(queries.offsets),
            "counts": np.asarray(self.counts),
            "cache": self._cache,
        }

    def __setstate__(self, state: dict) -> None:
        self.queries = _EncodedQueries(state["block"], state["offsets"])
        self.counts, self._cache = state["counts"], state["cache"]
        self._prepare()


def _encode(text: str) -> bytes:
    # Half a surrogate pair can arrive in a prefix by JSON; it matches nothing, and must not raise.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _query_batches(path: str) -> Iterable:
    """Column `query` batch by batch; pyarrow is imported only where a log is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise UserError(f"{path}: expected the Parquet file of the train split, found no such file")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path}: expected a Parquet file, found something else ({error})"
        ) from error
    with file:
        if "query" not in file.schema_arrow.names:
            raise UserError(
                f"{path}: expected a column 'query', found {', '.join(file.schema_arrow.names)}; "
                f"ingest the log first"
            )
        for batch in file.iter_batches(batch_size=65_536, columns=["query"]):
            yield batch.column(0)
