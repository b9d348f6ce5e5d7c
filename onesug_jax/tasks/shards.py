"""Records in ArrayRecord shards of bounded size, written in sequence and read by random access.

    folder/part-00000-of-00003.array_record, ..   records in order, one a chunk, for grain
    folder/counts.json                            shard -> number of records
    folder/{column}.npy                           values of all rows that a loader needs at once
    folder/meta.json                              written by the caller: features, lengths, ..

A shard is opened when one of its records is first read. Shards take at most half of the files that
the process may open (`ulimit -n`). For a folder in a bucket, `fetch` copies a file to the disk, and
`prefetch` starts that for the records of later batches.
"""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import read_json, write_json

COUNTS_FILE = "counts.json"
META_FILE = "meta.json"
SHARD_BYTES = 64 * 2**20  # of records, before they are compressed
_OPTIONS = "group_size:1,zstd:1"
_FETCHES = 8  # at once


def local(path: str) -> str:
    """The `fetch` of files on a disk: the same path."""
    return path


class Writer:
    """Writes a folder; one block of records and all columns are in memory.

    Args:
      folder: made if missing; without shards.
      columns: name -> dtype of its .npy file.
      shard_bytes: a shard ends with the record that reaches this size.
    """

    def __init__(self, folder: str, columns: Mapping[str, type], *, shard_bytes: int = SHARD_BYTES):
        os.makedirs(folder, exist_ok=True)
        self._folder, self._limit, self._bytes = folder, shard_bytes, 0
        self._counts: list[int] = []
        self._shard: ArrayRecordWriter | None = None
        self._digest = hashlib.sha256()
        self._columns: dict[str, list[np.ndarray]] = {
            name: [np.zeros(0, kind)] for name, kind in columns.items()
        }

    def add(self, records: Sequence[bytes], columns: Mapping[str, np.ndarray]) -> None:
        """Appends B records, and B values of every column."""
        for record in records:
            if self._shard is None or self._bytes >= self._limit:
                self._shard = self._next()
            self._shard.write(record)
            self._digest.update(record)
            self._bytes += len(record)
            self._counts[-1] += 1
        for name, blocks in self._columns.items():
            blocks.append(np.asarray(columns[name], blocks[0].dtype))

    def close(self) -> dict:
        """Closes the files; returns the `count` of the records and their `fingerprint`."""
        shard = self._shard or self._next()  # file-based sources need a file, even an empty one
        shard.close()
        for column, blocks in self._columns.items():
            np.save(os.path.join(self._folder, f"{column}.npy"), np.concatenate(blocks))
        names = [shard_name(n, len(self._counts)) for n in range(len(self._counts))]
        for number, name in enumerate(names):
            os.rename(self._open_name(number), os.path.join(self._folder, name))
        counts = dict(zip(names, self._counts, strict=True))
        write_json(os.path.join(self._folder, COUNTS_FILE), counts)
        return {"count": sum(self._counts), "fingerprint": self._digest.hexdigest()[:16]}

    def _next(self) -> ArrayRecordWriter:
        if self._shard is not None:
            self._shard.close()
        self._counts.append(0)
        self._bytes = 0
        return ArrayRecordWriter(self._open_name(len(self._counts) - 1), _OPTIONS)

    def _open_name(self, number: int) -> str:
        return os.path.join(self._folder, f".part-{number:05}")


def join(folder: str, parts: Sequence[str], columns: Iterable[str]) -> dict:
    """Joins the shards and columns of several folders in `folder`, in order.

    Args:
      parts: folders written by a `Writer`, on the same disk, since their shards are moved.
      columns: names of their .npy files.

    Returns:
      `count` and `fingerprint`, as `Writer.close`.
    """
    os.makedirs(folder, exist_ok=True)
    digest = hashlib.sha256()
    found: list[tuple[str, int]] = []
    for part in parts:
        counts = read_json(os.path.join(part, COUNTS_FILE), "shards of examples", "start again")
        found += [(os.path.join(part, name), count) for name, count in counts.items()]
        meta = read_json(os.path.join(part, META_FILE), "examples", "start again")
        digest.update(meta["fingerprint"].encode())
    found = [(path, count) for path, count in found if count] or found[:1]
    for name in columns:
        arrays = [np.load(os.path.join(part, f"{name}.npy"), mmap_mode="r") for part in parts]
        np.save(os.path.join(folder, f"{name}.npy"), np.concatenate(arrays))
    names = [shard_name(number, len(found)) for number in range(len(found))]
    for name, (path, _) in zip(names, found, strict=True):
        if os.path.exists(path):  # else an interrupted call has moved it
            os.replace(path, os.path.join(folder, name))
    counts = {name: count for name, (_, count) in zip(names, found, strict=True)}
    write_json(os.path.join(folder, COUNTS_FILE), counts)
    return {"count": sum(counts.values()), "fingerprint": digest.hexdigest()[:16]}


def read_meta(folder: str, what: str, way_out: str) -> dict:
    """The contents of meta.json: `count`, `features`, `vocabulary` ..; errors as `read_json`."""
    return read_json(os.path.join(folder, META_FILE), what, way_out)


def shard_name(number: int, of: int) -> str:
    """The file name of a shard."""
    return f"part-{number:05}-of-{of:05}.array_record"


def records_of(path: str, size: int = 4096) -> Iterator[bytes]:
    """The records of one shard, in order; `size` of them are in memory at once."""
    reader = ArrayRecordReader(path)
    for start in range(0, reader.num_records(), size):
        yield from reader.read(start, min(start + size, reader.num_records()))


class Shards:
    """The records of a folder by number, from any thread.

    Args:
      folder: written by a `Writer`.
      fetch: path -> path of the same file on a disk; called from several threads.
      way_out: the fix for missing or damaged files, for messages.

    Raises:
      UserError: counts.json is missing. `read` raises it for a damaged shard.
    """

    def __init__(self, folder: str, *, fetch: Callable[[str], str] = local, way_out: str):
        self._folder, self._fetch, self._way_out = folder, fetch, way_out
        counts = read_json(os.path.join(folder, COUNTS_FILE), "shards of examples", way_out)
        self._names = list(counts)
        self._ends = np.cumsum([counts[name] for name in self._names], dtype=np.int64)
        self._open: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()
        handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max(handles // 2, 1) if handles > 0 else len(counts)  # below 0: no limit
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="shards")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def all_open(self) -> bool:
        """Whether nothing is left to prefetch."""
        return len(self._open) == len(self._names)

    def column(self, name: str) -> np.ndarray:
        """A column of all rows, `[N]`, in memory."""
        file = f"{name}.npy"
        try:
            column = np.load(self._fetch(os.path.join(self._folder, file)))
        except (OSError, ValueError) as error:
            raise self._damaged(file, error) from error
        if len(column) != len(self):
            raise self._damaged(file, f"{len(column)} values for {len(self)} records")
        return column

    def read(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """The records with these numbers, in their order."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"expected records from 0 to {len(self) - 1}, found {rows.min()} to {rows.max()}"
            )
        out: list[bytes] = [b""] * len(rows)
        shards = np.searchsorted(self._ends, rows, side="right")
        needed = np.unique(shards).tolist()
        for shard, reader in zip(needed, self._readers(needed), strict=True):
            positions = np.flatnonzero(shards == shard)
            first = self._ends[shard - 1] if shard else 0
            try:
                records = reader.result().read((rows[positions] - first).tolist())
            except (OSError, RuntimeError) as error:
                raise self._damaged(self._names[shard], error) from error
            for position, record in zip(positions.tolist(), records, strict=True):
                out[position] = record
        return out

    def scan(self, first: int, stop: int, size: int = 4096) -> Iterator[list[bytes]]:
        """The records `first : stop` in order, in blocks of at most `size`."""
        for start in range(first, stop, size):
            yield self.read(np.arange(start, min(start + size, stop)))

    def prefetch(self, rows: Sequence[int] | np.ndarray) -> None:
        """Starts to open the shards of these records, in the background."""
        self._readers(np.unique(np.searchsorted(self._ends, rows, side="right")).tolist())

    def _readers(self, shards: list[int]) -> list[Future]:
        with self._lock:
            for shard in shards:
                if shard not in self._open:
                    self._open[shard] = self._pool.submit(self._open_shard, shard)
            readers = [self._open[shard] for shard in shards]
            while len(self._open) > self._max_open:  # a reader without references closes
                self._open.popitem(last=False)
        return readers

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        path = self._fetch(os.path.join(self._folder, self._names[shard]))
        # Random access reads one chunk at a time, so reading ahead is off.
        return ArrayRecordReader(
            path, options="readahead_buffer_size:0", file_reader_buffer_size=32_768
        )

    def _damaged(self, name: str, error: object) -> UserError:
        path = os.path.join(self._folder, name)
        if isinstance(error, Exception):
            check_refused(path, error)
        return UserError(f"{path}: the examples cannot be read ({error}); {self._way_out}")
