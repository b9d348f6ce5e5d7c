"""Parquet, JSONL and CSV files -> chunks of columns, in bounded memory.

Finds the files of a log, looks at each before anything is read, and streams them. A line that is
not UTF-8 or does not parse is set aside with its reason and the reading goes on; a file that as a
whole is not what it says raises UserError. What the columns mean is not known here.

Row numbers are 1-based: the line in JSONL and CSV (a CSV header is line 1), the row in Parquet.
Blank lines are no rows. Text files may be compressed (.gz).
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.columns import NOT_UTF8, Column

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
}
CHUNK_ROWS = 65_536
CHUNK_BYTES = 64 << 20  # of text: long lines make smaller chunks
LINE_BYTES = 8 << 20  # a longer line is no row of a log
HEAD_ROWS = 1_000
RAW_CHARACTERS = 2_000  # of a bad row that are kept beside its reason
ONESUG_COLUMNS = (
    "prefix",
    "searched_query",
    "rqvae_query",
    "chosen",
    "rejected",
    "pos_score",
    "neg_score",
)

_SPLIT_NAME = re.compile(r"(train|dev|valid|validation|test)([-_.].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One file of a log: `columns` are the names found (with Arrow types if it has any)."""

    path: str
    kind: str  # parquet, jsonl, csv, or onesug (seven tab-separated columns without a header)
    columns: dict[str, pa.DataType | None]
    split: str | None = None  # train, dev or test where the file's name says so
    delimiter: str = ","
    index: int = 0  # its place among the log's files


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file: columns [rows] each, and apart from them the lines that are none."""

    source: Source
    rows: Sequence[int]
    columns: dict[str, Column]
    raw: Callable[[int], str]  # of row i of the chunk, as it stood in the file
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # (row number, reason, raw)


def find_files(log: str, *, without: str = "") -> list[Source]:
    """The files of `log` (a file, a folder walked to its leaves, a glob), looked into and sorted.

    In a folder, hidden files, files beginning with "_" and files of other kinds are passed over,
    and files (or folders) named train, dev, valid or test carry that split.

    Args:
      log: path or glob pattern.
      without: a folder whose files are not part of the log (where results are written).

    Raises:
      UserError: nothing found, an unknown kind of file, a file that is empty or cannot be read.
    """
    if os.path.isdir(log):
        paths = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(log)
            for name in names
            if not any(
                part.startswith((".", "_"))
                for part in os.path.relpath(os.path.join(folder, name), log).split(os.sep)
            )
        ]
        root = log
    elif os.path.isfile(log):
        paths, root = [log], None
    else:
        paths = [path for path in glob.glob(log, recursive=True) if os.path.isfile(path)]
        root = None
        if not paths:
            raise UserError(
                f"log {log!r}: expected a file, a folder or a glob that matches files; found "
                "nothing there. Check the path (a glob needs quotes in a shell)."
            )
    if without:
        inside = os.path.abspath(without) + os.sep
        paths = [path for path in paths if not os.path.abspath(path).startswith(inside)]
    alone = len(paths) == 1 and root is None
    sources = []
    for path in sorted(paths):
        if _suffix(path) not in SUFFIXES and not alone:
            continue
        source = sniff(path, split=_split_of(os.path.relpath(path, root)) if root else None)
        if path.endswith(".txt") and not alone and source.kind != "onesug":
            continue  # notes that lie beside the data
        sources.append(source)
    if not sources:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(
            f"log {log!r}: expected files of a log ({kinds}, text also .gz); found none."
        )
    return [Source(**{**vars(s), "index": index}) for index, s in enumerate(sources)]


def sniff(path: str, *, split: str | None = None) -> Source:
    """Kind and columns of one file from its beginning.

    Raises:
      UserError: unknown kind, empty, unreadable, or not of the kind its name says.
    """
    kind = SUFFIXES.get(_suffix(path))
    if kind is None:
        raise UserError(
            f"{path}: expected a name ending in one of {' '.join(sorted(SUFFIXES))} (text files "
            f"also .gz); found {os.path.basename(path)!r}. Rename or convert the file."
        )
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the file is empty (0 bytes). Remove it or write it again.")
    try:
        if kind == "parquet":
            schema = pq.read_schema(path)
            if len(set(schema.names)) < len(schema.names):
                raise UserError(f"{path}: expected each column name once; found {schema.names}.")
            return Source(path, kind, dict(zip(schema.names, schema.types, strict=True)), split)
        with _open(path) as file:
            head = file.read(1 << 16)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: expected UTF-8 text, found UTF-16. Save it as UTF-8.")
        if kind == "jsonl":
            return Source(path, kind, dict.fromkeys(_jsonl_keys(path, head)), split)
        return _sniff_csv(path, head, split)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise _unreadable(path, kind, error) from None


def read_chunks(
    source: Source, *, only: Sequence[str] | None = None, rows: int = CHUNK_ROWS
) -> Iterator[Chunk]:
    """The file in chunks of at most `rows` rows, in order; of Parquet only the columns `only`.

    Raises:
      UserError: the file breaks off or turns out damaged.
    """
    try:
        if source.kind == "parquet":
            yield from _read_parquet(source, only, rows)
        else:
            yield from (_read_jsonl if source.kind == "jsonl" else _read_csv)(source, rows)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise _unreadable(source.path, source.kind, error) from None


def _unreadable(path: str, kind: str, error: Exception) -> UserError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: expected a whole {kind} file; reading it failed: {said[:300]}")


def _suffix(path: str) -> str:
    name = path.lower().removesuffix(".gz")
    suffix = os.path.splitext(name)[1]
    return "" if suffix == ".parquet" and path.lower().endswith(".gz") else suffix


def _split_of(relative: str) -> str | None:
    for part in relative.split(os.sep)[::-1]:
        match = _SPLIT_NAME.fullmatch(part)
        if match:
            name = match.group(1).lower()
            return "dev" if name.startswith("valid") else name
    return None


def _open(path: str) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _show(line: bytes | str) -> str:
    if isinstance(line, str):
        line = line.encode("utf-8", "surrogateescape")
    return line.decode("utf-8", "backslashreplace").rstrip("\r\n")[:RAW_CHARACTERS]


def _shower(raws: list[str]) -> Callable[[int], str]:
    return lambda row: _show(raws[row])


def _read_parquet(source: Source, only: Sequence[str] | None, rows: int) -> Iterator[Chunk]:
    number = 0
    names = None if only is None else [name for name in source.columns if name in set(only)]
    with pq.ParquetFile(source.path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=names):

            def raw(row: int, batch: pa.RecordBatch = batch) -> str:
                one = [[name, _bytes_of(batch.column(name), row)] for name in batch.schema.names]
                return json.dumps(dict(one), ensure_ascii=False, default=_plain)[:RAW_CHARACTERS]

            count = batch.num_rows
            columns = {name: batch.column(name) for name in batch.schema.names}
            yield Chunk(source, range(number + 1, number + count + 1), columns, raw)
            number += count


def _plain(value: object) -> str:
    return _show(value) if isinstance(value, bytes) else str(value)


def _bytes_of(column: pa.Array, row: int) -> object:
    try:
        return column[row].as_py()
    except UnicodeDecodeError:  # text in Parquet is not checked when it is read
        return f"(not UTF-8) {column.slice(row, 1)!r}"[:RAW_CHARACTERS]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each line that is not blank; of one beyond LINE_BYTES, its beginning."""
    with _open(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            piece = line
            while len(piece) == LINE_BYTES and not piece.endswith(b"\n"):
                piece = file.readline(LINE_BYTES)
            if line.strip():
                yield number, line


def _parse_json(line: bytes) -> dict | str:
    """The object of a line, or the reason why there is none."""
    if len(line) >= LINE_BYTES:
        return f"line over {LINE_BYTES >> 20} MiB"
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):
        return "malformed JSON"
    return value if isinstance(value, dict) else "JSON that is not an object"


def _jsonl_keys(path: str, head: bytes) -> list[str]:
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        raise UserError(
            f"{path}: expected JSON lines (one object a line), found one JSON array. "
            f"Mend: jq -c '.[]' {os.path.basename(path)} > rows.jsonl"
        )
    keys: dict[str, None] = {}
    objects = 0
    for number, (_, line) in enumerate(_lines(path)):
        value = _parse_json(line)
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
            objects += 1
        if objects >= HEAD_ROWS or number >= 10 * HEAD_ROWS:
            break
    if not objects:
        raise UserError(
            f"{path}: expected one JSON object a line; found none in its first lines. "
            f"It begins with {_show(head[:80])!r}."
        )
    return list(keys)


def _read_jsonl(source: Source, rows: int) -> Iterator[Chunk]:
    numbers: list[int] = []
    lines: list[bytes] = []
    objects: list[dict] = []
    bad: list[tuple[int, str, str]] = []
    size = 0

    def chunk() -> Chunk:
        keys = dict.fromkeys(key for one in objects for key in one)
        columns = {key: [one.get(key) for one in objects] for key in keys}
        kept = lines
        return Chunk(source, numbers, columns, lambda row: _show(kept[row]), bad)

    for number, line in _lines(source.path):
        value = _parse_json(line)
        if isinstance(value, str):
            bad.append((number, value, _show(line[: 4 * RAW_CHARACTERS])))
        else:
            numbers.append(number)
            lines.append(line)
            objects.append(value)
        size += len(line)
        if len(objects) + len(bad) >= rows or size >= CHUNK_BYTES:
            yield chunk()
            numbers, lines, objects, bad, size = [], [], [], [], 0
    if objects or bad:
        yield chunk()


def _sniff_csv(path: str, head: bytes, split: str | None) -> Source:
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r")
    fields = first.split(b"\t")
    if len(fields) == len(ONESUG_COLUMNS) and _is_number(fields[-1]) and _is_number(fields[-2]):
        return Source(path, "onesug", dict.fromkeys(ONESUG_COLUMNS), split, "\t")
    try:
        line = first.decode()
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: expected a header line in UTF-8; found {_show(first)!r}"
        ) from None
    delimiter = max(",\t;", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    names = [name.strip() for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not any(names):
        found = f"{repeated[0]!r} more than once" if repeated else "a blank line"
        raise UserError(f"{path}: expected a header line naming each column once; found {found}.")
    return Source(path, "csv", dict.fromkeys(names), split, delimiter)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _text_lines(path: str, taken: list[str]) -> Iterator[str]:
    """Lines as text, bytes that are not UTF-8 as surrogates; each is noted in `taken`."""
    with _open(path) as file:
        first = True
        while line := file.readline(LINE_BYTES):
            if first:
                line, first = line.removeprefix(b"\xef\xbb\xbf"), False
            text = line.decode("utf-8", "surrogateescape")
            taken.append(text)
            yield text


def _read_csv(source: Source, rows: int) -> Iterator[Chunk]:
    names = list(source.columns)
    taken: list[str] = []
    lines = _text_lines(source.path, taken)
    if source.kind == "onesug":
        parser: Iterator[list[str]] = (line.rstrip("\r\n").split("\t") for line in lines)
    else:
        parser = csv.reader(lines, delimiter=source.delimiter)
        next(parser)
    number = 1 + len(taken)
    taken.clear()
    while True:
        numbers: list[int] = []
        raws: list[str] = []
        cells: list[list[str]] = []
        bad: list[tuple[int, str, str]] = []
        size = 0
        ended = False
        while len(cells) + len(bad) < rows and size < CHUNK_BYTES:
            try:
                row: list[str] | str = next(parser)
            except StopIteration:
                ended = True
                break
            except csv.Error as error:
                row = f"malformed CSV: {error}"
            raw, start = "".join(taken), number
            number += len(taken)
            size += len(raw)
            taken.clear()
            if not raw.strip():
                continue
            if isinstance(row, list) and not raw.isascii() and not _encodes(raw):
                row = NOT_UTF8
            if isinstance(row, list) and len(row) != len(names):
                row = "number of cells differs from the header"
            if isinstance(row, str):
                bad.append((start, row, _show(raw[: 4 * RAW_CHARACTERS])))
            else:
                numbers.append(start)
                raws.append(raw)
                cells.append(row)
        if cells or bad:
            columns = {name: [row[place] for row in cells] for place, name in enumerate(names)}
            yield Chunk(source, numbers, columns, _shower(raws), bad)
        if ended:
            return


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
