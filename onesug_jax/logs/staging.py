"""Reading the files of a log into a folder: clean rows as Parquet, bad rows as JSONL.

One task reads one file, so an engine reads several at a time. Every row is counted once, as clean
or as set aside.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs.adapter import Adapter, check_distinct
from onesug_jax.logs.readers import Source
from onesug_jax.logs.schema import REQUIRED, SPLITS, UNTIMELY, profile_columns
from onesug_jax.progress import Progress

BY_TIME = -1
MAX_PROFILE = 64  # columns; in a log with more of them the keys are data
EARLY_STOP_ROWS = 100_000
UNTIMELY_SHARE = 0.1

# Columns added to the parts: the requested split, the file and the row of a row.
SPLIT, FILE, ROW = "_onesug_split", "_onesug_file", "_onesug_row"

Check = Callable[[pa.Table], tuple[pa.Table, np.ndarray, dict[int, str]]]  # as `schema.validate`


@dataclass
class Staged:
    """The rows read of a log, or of one of its files: their counts, and the parts written.

    Attributes:
      rows: all rows. set_aside: the bad ones. reasons: of these, with their numbers.
      rows_of: number of rows of each file.
      joined: lines, or rows of the file, that belong to another row.
      units: times converted to milliseconds, by their unit.
      profile: names of the profile columns, in the order found.
      parts: paths of the Parquet files with the clean rows.
    """

    rows: int = 0
    set_aside: int = 0
    joined: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    rows_of: collections.Counter[str] = field(default_factory=collections.Counter)
    units: collections.Counter[str] = field(default_factory=collections.Counter)
    profile: dict[str, None] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)

    def count(self, path: str, rows: int) -> None:
        """Add `rows` rows of a file; a negative number takes them back."""
        self.rows += rows
        self.rows_of[path] += rows

    def add(self, path: str, other: Staged) -> None:
        """Add what was read of the file `path`."""
        self.add_profile(path, other.profile)
        self.rows += other.rows
        self.set_aside += other.set_aside
        self.joined += other.joined
        for name in ("reasons", "rows_of", "units"):
            getattr(self, name).update(getattr(other, name))
        self.parts += other.parts

    def add_profile(self, path: str, names: Iterable[str]) -> None:
        """Add the profile columns of the file `path`.

        Raises:
          UserError: too many, or names that differ from each other only by case or white space.
        """
        fresh = [name for name in names if name not in self.profile]
        if fresh:
            check_distinct(path, [*self.profile, *fresh], [*REQUIRED, SPLIT, FILE, ROW])
        self.profile.update(dict.fromkeys(fresh))
        if len(self.profile) > MAX_PROFILE:
            first = ", ".join(list(self.profile)[:5])
            raise UserError(
                f"{path}: expected at most {MAX_PROFILE} profile columns; found more "
                f"({first} ...). Name those to use with ingest.profile."
            )

    def too_bad(self, max_bad_share: float) -> bool:
        """Whether more rows are bad than allowed.

        If the allowed share is not 0, rows with an implausible time do not count, up to a tenth of
        all rows: they do not show that the log is read wrongly.
        """
        untimely = sum(n for reason, n in self.reasons.items() if reason.startswith(UNTIMELY))
        spared = min(untimely, UNTIMELY_SHARE * self.rows) if max_bad_share else 0
        return self.set_aside - spared > max_bad_share * self.rows

    def hopeless(self, max_bad_share: float) -> bool:
        """Whether to stop early: at least half of many rows are bad, which is not allowed."""
        many = self.rows >= EARLY_STOP_ROWS and self.set_aside >= 0.5 * self.rows
        return many and self.too_bad(max_bad_share)


class SetAside:
    """Writes bad rows to a JSONL file in `folder` and counts them in `staged`; a context manager.

    The names of the files are in the order in which `set_aside_files` joins them.
    """

    def __init__(self, staged: Staged, folder: str, number: int):
        self._staged = staged
        path = os.path.join(folder, f"aside-{number:010d}.jsonl")
        self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def __call__(self, path: str, row: int, reason: str, raw: str) -> None:
        """Write and count one row of the file `path`."""
        self._staged.count(path, 1)
        self._staged.set_aside += 1
        self._staged.reasons[reason] += 1
        line = {"file": path, "row": row, "reason": reason, "raw": raw}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __enter__(self) -> SetAside:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._file.close()


def set_aside_files(folder: str) -> list[str]:
    """The files that `SetAside` wrote there, in order."""
    names = sorted(name for name in os.listdir(folder) if name.startswith("aside-"))
    return [os.path.join(folder, name) for name in names]


@dataclass(frozen=True)
class FileReader:
    """Reads one file into `folder`; a task of `logs.workers`."""

    adapter: Adapter
    check: Check
    folder: str
    max_bad_share: float

    def __call__(self, source: Source, progress: Progress | None = None) -> Staged:
        """Write the clean rows to part-*.parquet and the bad rows to aside-*.jsonl.

        Reading stops early if it is `Staged.hopeless`.
        """
        staged = Staged()
        parts = _Parts(staged, source, self.folder)
        with SetAside(staged, self.folder, source.index) as aside, parts:
            for chunk in self.adapter.chunks(source):
                before = staged.rows
                staged.joined += chunk.joined
                for row, reason, raw in chunk.bad:
                    aside(source.path, row, reason, raw)
                if len(chunk.rows):
                    rows = self.adapter.convert(chunk)
                    table, accepted, reasons = self.check(rows.table)
                    faults = sorted(rows.faults.items())
                    faults += [(int(rows.origin[row]), why) for row, why in sorted(reasons.items())]
                    for row, reason in faults:
                        aside(source.path, int(chunk.rows[row]), reason, chunk.raw(row))
                    staged.joined += rows.joined
                    staged.units += rows.units
                    if len(accepted):
                        splits = np.full(len(accepted), _split_of(source), np.int8)
                        if rows.splits is not None and not source.split:
                            splits = rows.splits[accepted]
                        numbers = np.asarray(chunk.rows, np.int64)[rows.origin[accepted]]
                        parts.write(table, splits, numbers)
                if progress is not None:
                    note = f"{staged.set_aside:,} set aside, {source.path}"
                    progress.add(staged.rows - before, note)
                if staged.hopeless(self.max_bad_share):
                    break
        return staged


def _split_of(source: Source) -> int:
    return SPLITS.index(source.split) if source.split else BY_TIME


class _Parts:
    """Writes the clean rows of one file; a context manager."""

    def __init__(self, staged: Staged, source: Source, folder: str):
        self._staged, self._source, self._folder = staged, source, folder
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table, splits: np.ndarray, rows: np.ndarray) -> None:
        """Append rows; a new part begins where the columns change, as JSONL allows.

        Args:
          table: in the schema, with the profile columns.
          splits: int8 [rows], places in SPLITS or BY_TIME.
          rows: int64 [rows], their row numbers in the file.
        """
        staged, source = self._staged, self._source
        staged.count(source.path, table.num_rows)
        staged.add_profile(source.path, profile_columns(table.schema))
        table = (
            table.append_column(SPLIT, pa.array(splits, pa.int8()))
            .append_column(FILE, pa.array(np.full(table.num_rows, source.index, np.int32)))
            .append_column(ROW, pa.array(rows, pa.int64()))
        )
        if self._writer is None or not self._writer.schema.equals(table.schema):
            self.__exit__()
            name = f"part-{source.index:05d}-{len(staged.parts):05d}.parquet"
            staged.parts.append(os.path.join(self._folder, name))
            self._writer = pq.ParquetWriter(staged.parts[-1], table.schema, compression="lz4")
        self._writer.write_table(table)

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
