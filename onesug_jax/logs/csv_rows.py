"""CSV and TSV -> cells, strictly, with every physical line counted.

The csv module of the standard library is the parser, because it reads one physical line after
another: DuckDB and pyarrow join lines before they can be counted. A row that does not parse, or
whose number of cells differs from the header, is its first line alone, and reading continues with
the next line. So a quote that never closes costs one line. If a quoted cell over several lines
contains as many delimiters as a row has, it may hide rows, and reading stops.
"""

from __future__ import annotations

import collections
import csv
from collections.abc import Iterator

from onesug_jax.errors import UserError
from onesug_jax.logs.columns import NOT_UTF8
from onesug_jax.logs.lines import Record, is_utf8

CELLS = "number of cells differs from the header"


class _Feed:
    """Lines for csv.reader; lines in `returned` are read again."""

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self.lines = lines
        self.returned: collections.deque[tuple[int, str]] = collections.deque()
        self.taken: list[tuple[int, str]] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self.returned.popleft() if self.returned else next(self.lines)
        self.taken.append(line)
        return line[1]


def read_records(
    path: str, lines: Iterator[tuple[int, str]], delimiter: str, names: tuple[str, ...]
) -> Iterator[Record]:
    """Every row of a CSV without its header line.

    Args:
      path: the file, for messages. lines: its physical lines after the header, with their numbers.
      delimiter: one character. names: the cells of the header.

    Raises:
      UserError: a quote closes on a later line and may hide rows (file and line are named).
    """
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    width = len(names)
    while True:
        feed.taken.clear()
        reason, cells = "", list[str]()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"malformed CSV: {error}"
        number, raw = feed.taken[0]
        if not reason and len(cells) != width:
            reason = f"{CELLS}: too {'many' if len(cells) > width else 'few'}"
        if len(feed.taken) > 1 and reason:
            feed.returned.extendleft(reversed(feed.taken[1:]))
            del feed.taken[1:]
            reason = "malformed CSV: a quote is not closed on its line"
        elif len(feed.taken) > 1:
            _check_swallowed(path, feed.taken, cells, delimiter, width)
            raw = "".join(line for _, line in feed.taken)
        if not is_utf8(raw):
            reason = NOT_UTF8
        yield Record(number, raw, cells, reason, len(feed.taken))


def _check_swallowed(
    path: str, taken: list[tuple[int, str]], cells: list[str], delimiter: str, width: int
) -> None:
    inside = sum(cell.count(delimiter) for cell in cells if "\n" in cell or "\r" in cell)
    if width > 1 and inside >= width - 1:
        raise UserError(
            f"{path}, line {taken[0][0]}: a quote opens a cell that closes on line "
            f"{taken[-1][0]} and holds {inside} delimiters {delimiter!r} on the way, as many as "
            'a row has: rows may be lost in it. Double the quote if it is text (""), or take the '
            "line breaks out of the cell, or write the log as JSONL or Parquet."
        )
