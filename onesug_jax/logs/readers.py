"""Parquet, JSONL and CSV files -> chunks of columns, in bounded memory.

A line that is not UTF-8 or does not parse is set aside with its reason, and reading continues. A
file of the wrong format raises UserError.

Row numbers are 1-based: the physical line in JSONL and CSV (a CSV header is line 1), the row in
Parquet. Blank lines are not rows. `Chunk.joined` counts the further lines of cells over several
lines. Every line of a file is thus a row, a bad row or a joined line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from onesug_jax.errors import UserError, file_error
from onesug_jax.files import open_parquet
from onesug_jax.logs.columns import NOT_UTF8, Column
from onesug_jax.logs.csv_rows import CELLS, read_records
from onesug_jax.logs.lines import (
    LINE_CHARACTERS,
    SHOWN_CHARACTERS,
    Record,
    is_utf8,
    physical_lines,
    show,
)

CHUNK_ROWS = 65_536
CHUNK_CHARACTERS = 64 << 20  # of text: long lines make smaller chunks
ONESUG_COLUMNS = (
    "prefix",
    "searched_query",
    "rqvae_query",
    "chosen",
    "rejected",
    "pos_score",
    "neg_score",
)

_UNNAMED = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Source:
    """One file of a log: `columns` are its column names (in Parquet with their Arrow types)."""

    path: str
    kind: str  # parquet, jsonl, csv, or onesug (seven tab-separated columns without a header)
    columns: dict[str, pa.DataType | None]
    split: str | None = None  # train, dev or test where the file's name says so
    delimiter: str = ","
    index: int = 0  # its place among the log's files
    header: tuple[str, ...] = ()  # of a CSV: all cells, also those without a name
    note: str = ""  # a sentence about columns that are left out


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file: columns [rows], and the bad lines between them."""

    source: Source
    rows: Sequence[int]  # row numbers
    columns: dict[str, Column]
    raw: Callable[[int], str]  # text of row i of the chunk as it was in the file
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # (row number, reason, raw)
    joined: int = 0  # physical lines that belong to a row that began on an earlier line


def unnamed(name: str) -> bool:
    """Whether a column has no name, such as the index that pandas writes."""
    return _UNNAMED.fullmatch(name) is not None


def read_chunks(
    source: Source, *, only: Sequence[str] | None = None, rows: int = CHUNK_ROWS
) -> Iterator[Chunk]:
    """The file in chunks of at most `rows` rows, in order; of Parquet only the columns `only`.

    Raises:
      UserError: the file is truncated or damaged, or has a quote that may hide rows.
    """
    done = 0
    try:
        for chunk in (_read_parquet if source.kind == "parquet" else _read_text)(
            source, only, rows
        ):
            done += len(chunk.rows) + len(chunk.bad)
            yield chunk
    except (OSError, pa.ArrowException) as error:
        raise unreadable(source.path, source.kind, error, done) from None


def unreadable(path: str, kind: str, error: Exception, rows: int = 0) -> UserError:
    """The error for a file that cannot be read, or not to its end."""
    if isinstance(error, OSError) and error.errno:
        return file_error(path, "reading it", error)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    after = f" after about {rows:,} rows" if rows else ""
    return UserError(
        f"{path}: expected a whole {kind} file; reading it failed{after}: {reason[:300]}. Copy or "
        "write the file again, or take it out of the log."
    )


def _read_parquet(source: Source, only: Sequence[str] | None, rows: int) -> Iterator[Chunk]:
    number = 0
    names = [name for name in source.columns if only is None or name in only]
    with open_parquet(source.path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=names):

            def raw(row: int, batch: pa.RecordBatch = batch) -> str:
                cells = {name: _cell(batch.column(name), row) for name in batch.schema.names}
                return json.dumps(cells, ensure_ascii=False, default=_plain)[:SHOWN_CHARACTERS]

            count = batch.num_rows
            columns = {name: batch.column(name) for name in batch.schema.names}
            yield Chunk(source, range(number + 1, number + count + 1), columns, raw)
            number += count


def _plain(value: object) -> str:
    return show(value) if isinstance(value, bytes) else str(value)


def _cell(column: pa.Array, row: int) -> object:
    try:
        return column[row].as_py()
    except UnicodeDecodeError:  # text in Parquet is not checked when it is read
        return f"(not UTF-8) {column.slice(row, 1)!r}"[:SHOWN_CHARACTERS]


class _RepeatedKeyError(ValueError):
    """A JSON object has the same key twice."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"JSON with key {repeated[:40]!r} more than once")
    return value


_check_keys = json.JSONDecoder(object_pairs_hook=_distinct_keys).decode


def parse_json(number: int, line: str) -> Record:
    """The object of a line of JSON."""
    value, reason = None, ""
    if len(line) >= LINE_CHARACTERS:
        reason = f"line over {LINE_CHARACTERS >> 20} million characters"
    elif not is_utf8(line):
        reason = NOT_UTF8
    else:
        try:
            line = line.lstrip("\ufeff")
            value = json.loads(line)
            if isinstance(value, dict) and line.count(":") != len(value):
                _check_keys(line)  # a colon in a text, an inner object, or a repeated key
            reason = "" if isinstance(value, dict) else "JSON that is not an object"
        except _RepeatedKeyError as error:
            reason = str(error)
        except (ValueError, RecursionError):
            reason = "malformed JSON"
    return Record(number, line, value, reason)


def _parse_onesug(number: int, line: str) -> Record:
    cells = line.rstrip("\r\n").split("\t")
    reason = "" if is_utf8(line) else NOT_UTF8
    if len(cells) != len(ONESUG_COLUMNS):
        reason = reason or CELLS
    return Record(number, line, cells, reason)


def _records(source: Source) -> Iterator[Record]:
    lines = physical_lines(source.path)
    if source.kind == "csv":
        next(lines, None)
        return read_records(source.path, lines, source.delimiter, source.header)
    parse = parse_json if source.kind == "jsonl" else _parse_onesug
    return (parse(number, line) for number, line in lines)


def _read_text(source: Source, only: Sequence[str] | None, rows: int) -> Iterator[Chunk]:
    good: list[Record] = []
    bad: list[tuple[int, str, str]] = []
    joined = size = 0
    for record in _records(source):
        if record.reason:
            bad.append((record.number, record.reason, show(record.raw)))
        else:
            good.append(record)
        joined += record.lines - 1
        size += len(record.raw)
        if len(good) + len(bad) >= rows or size >= CHUNK_CHARACTERS:
            yield _chunk(source, good, bad, joined)
            good, bad, joined, size = [], [], 0, 0
    if good or bad:
        yield _chunk(source, good, bad, joined)


def _chunk(source: Source, good: list[Record], bad: list, joined: int) -> Chunk:
    columns: dict[str, Column]
    if source.kind == "jsonl":
        keys = dict.fromkeys(key for record in good for key in record.value if not unnamed(key))
        columns = {key: [record.value.get(key) for record in good] for key in keys}
    else:
        names = source.header or tuple(source.columns)
        places = {name: place for place, name in enumerate(names) if name in source.columns}
        columns = {name: [record.value[at] for record in good] for name, at in places.items()}
    numbers = [record.number for record in good]
    return Chunk(source, numbers, columns, lambda row: show(good[row].raw), bad, joined)
