"""The physical lines of a text file, compressed or not; all row counts are based on them.

A line ends with LF, CR LF or CR alone. Line numbers are 1-based and count blank lines. A byte order
mark is skipped. Bytes that are not UTF-8 become surrogates, so that no line is lost.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4", ".br": "brotli"}
LINE_CHARACTERS = 8 << 20  # a longer line is not a row of a log
SHOWN_CHARACTERS = 2_000  # most of a bad row that is written beside its reason


class Record(NamedTuple):
    """One row of a text file: a JSON object or cells, or the reason why it is faulty."""

    number: int  # of its first line
    raw: str
    value: Any
    reason: str = ""
    lines: int = 1  # number of physical lines


def stem(path: str) -> str:
    """The file's lower-case name without the suffix of its compression."""
    name = os.path.basename(path).lower()
    root, end = os.path.splitext(name)
    return root if end in CODECS else name


def physical_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of each line that is not blank.

    A line over LINE_CHARACTERS is cut there. Raises OSError if the file cannot be read or its
    compressed data is truncated.
    """
    codec = CODECS.get(os.path.splitext(path.lower())[1])
    binary = pa.input_stream(path, compression=codec) if codec else open(path, "rb")
    with io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as file:
        number = 0
        while line := file.readline(LINE_CHARACTERS):
            number += 1
            piece = line
            while len(piece) == LINE_CHARACTERS and piece[-1] not in "\r\n":
                piece = file.readline(LINE_CHARACTERS)
            if line.strip():
                yield number, line


def is_utf8(text: str) -> bool:
    """Whether the line was UTF-8 in the file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(text: str | bytes) -> str:
    """The beginning of a row as it was in the file, for messages."""
    if isinstance(text, str):
        text = text[: 4 * SHOWN_CHARACTERS].encode("utf-8", "surrogateescape")
    return text.decode("utf-8", "backslashreplace").rstrip("\r\n")[:SHOWN_CHARACTERS]
