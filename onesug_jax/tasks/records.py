"""Rows as `tf.train.Example` records, without TensorFlow: blocks of rows at once, in numpy.

Standard readers parse them (`tf.io.parse_single_example`, protobuf). The message is

    Example {1: Features {1: entry, ..}}   entry {1: name, 2: Feature}
    Feature {2: FloatList | 3: Int64List}  list {1: packed values; absent if there are none}

`tasks.shards` stores the records.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_FLOATS, _INTS = b"\x12", b"\x1a"  # fields 2 and 3 of Feature
_FIRST, _SECOND = b"\x0a", b"\x12"  # fields 1 and 2, of bytes


def encode(block: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
    """One record a row.

    Args:
      block: feature name, at most 127 bytes -> the concatenated values of all B rows, and the
        number of values of each row. Floating values are written as float32, others as int64.
    """
    columns = []
    for name, (values, counts) in block.items():
        floats = np.issubdtype(values.dtype, np.floating)
        if floats:
            data, ends = values.astype("<f4").tobytes(), 4 * np.cumsum(counts)
        else:
            data, sizes = _varints(values)
            ends = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(counts)]
        starts = np.concatenate([[0], ends[:-1]])
        kind, key = _FLOATS if floats else _INTS, name.encode()
        columns.append(
            [
                _header(key, kind, stop - start) + data[start:stop]
                for start, stop in zip(starts.tolist(), ends.tolist(), strict=True)
            ]
        )
    bodies = map(b"".join, zip(*columns, strict=True))
    return [_FIRST + _varint(len(body)) + body for body in bodies]


def decode(
    records: Sequence[bytes], names: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The inverse of `encode` for some features: values (float32 or int64) and counts `[B]`.

    Raises:
      ValueError: a record lacks one of the features, or is invalid.
    """
    name_of = {name.encode(): name for name in names}
    values_of: dict[str, list[bytes]] = {name: [] for name in name_of.values()}
    floating = set()
    for record in records:
        at = _read(record, 1)[1]
        while at < len(record):
            stop, at = _read(record, at + 1)
            stop += at
            key = at + 2 + record[at + 1]
            name = name_of.get(record[at + 2 : key])
            at = stop
            if name is not None:
                if record[key + 1] < 128:  # all lengths take one byte: the common case, faster
                    kind = key + 2
                    begin = kind + 4
                else:
                    kind = _read(record, key + 1)[1]
                    begin = _read(record, _read(record, kind + 1)[1] + 1)[1]
                if record[kind] == _FLOATS[0]:
                    floating.add(name)
                values_of[name].append(record[begin:stop])
    out = {}
    for name, parts in values_of.items():
        if len(parts) != len(records):
            raise ValueError(f"{len(records) - len(parts)} records have no feature {name!r}")
        data, sizes = b"".join(parts), np.array([len(part) for part in parts], np.int64)
        if name in floating:
            out[name] = np.frombuffer(data, "<f4"), sizes // 4
        else:
            values, last = _integers(data)
            ends = np.concatenate([[0], np.cumsum(last)])[np.cumsum(sizes)]
            out[name] = values, np.diff(ends, prepend=0)
    return out


@functools.lru_cache(maxsize=1 << 16)
def _header(key: bytes, kind: bytes, size: int) -> bytes:
    """The bytes before `size` bytes of packed values."""
    packed = _FIRST + _varint(size) if size else b""
    feature = kind + _varint(len(packed) + size) + packed
    entry = _FIRST + _varint(len(key)) + key + _SECOND + _varint(len(feature) + size) + feature
    return _FIRST + _varint(len(entry) + size) + entry


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read(data: bytes, at: int) -> tuple[int, int]:
    """The varint that begins at `at`, and the position after it."""
    value, shift = data[at], 7
    if value < 128:
        return value, at + 1
    value &= 127
    while data[at] > 127:
        at += 1
        value |= (data[at] & 127) << shift
        shift += 7
    return value, at + 1


def _varints(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Integers as concatenated varints, and the bytes of each; a negative integer takes 10."""
    left = values.astype(np.int64).view(np.uint64)
    sizes = np.ones(len(left), np.int64)
    for k in range(1, 10):
        sizes += left >> np.uint64(7 * k) > 0
    out = np.empty(int(np.sum(sizes)), np.uint8)
    starts = np.cumsum(sizes) - sizes
    for k in range(int(np.max(sizes, initial=0))):
        rows = np.flatnonzero(sizes > k)
        continues = (sizes[rows] > k + 1).astype(np.uint64) << np.uint64(7)
        out[starts[rows] + k] = (left[rows] >> np.uint64(7 * k) & np.uint64(127)) | continues
    return out.tobytes(), sizes


def _integers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The int64 values of concatenated varints, and a mask `[len(data)]` of their last bytes."""
    raw = np.frombuffer(data, np.uint8)
    last = raw < 128
    if last.all():
        return raw.astype(np.int64), last
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    position = np.arange(len(raw)) - np.repeat(starts, np.diff(starts, append=len(raw)))
    shifted = (raw & 127).astype(np.uint64) << (7 * position).astype(np.uint64)
    return np.add.reduceat(shifted, starts).view(np.int64), last
