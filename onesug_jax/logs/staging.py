"""The staging area of rows while files are read: clean rows in Parquet, bad rows in a JSONL file.

Every row is counted once, as retained or as set aside.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_path
from onesug_jax.logs.adapter import check_distinct
from onesug_jax.logs.readers import Source
from onesug_jax.logs.schema import REQUIRED, UNTIMELY, profile_columns
from onesug_jax.progress import Progress

MAX_PROFILE = 64  # columns; in a log with more of them the keys are data
EARLY_STOP_ROWS = 100_000
UNTIMELY_SHARE = 0.1

# Columns added to the parts: the requested split, the file and the row of a row.
SPLIT, FILE, ROW = "_onesug_split", "_onesug_file", "_onesug_row"


class Staging:
    """Writes clean rows to temporary Parquet and bad ones to the file of rows set aside."""

    def __init__(self, folder: str, max_bad_share: float, set_aside_path: str):
        """Parts go to `folder`, rows set aside to `set_aside_path`, which `close` completes."""
        self.folder = folder
        self.max_bad_share = max_bad_share
        self.set_aside_path = set_aside_path
        self.rows = 0
        self.set_aside = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.rows_of: collections.Counter[str] = collections.Counter()
        self.profile: dict[str, None] = {}
        self.joined = 0  # lines, or rows of the file, that belong to another row
        self.units: collections.Counter[str] = collections.Counter()
        self.parts: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._stack = contextlib.ExitStack()
        path = self._stack.enter_context(atomic_path(set_aside_path))
        self._bad: TextIO = self._stack.enter_context(
            open(path, "w", encoding="utf-8", errors="backslashreplace")
        )
        self._progress = Progress("ingest")

    def put_aside(self, path: str, row: int, reason: str, raw: str) -> None:
        """Count and write one bad row."""
        self.rows += 1
        self.rows_of[path] += 1
        self.set_aside += 1
        self.reasons[reason] += 1
        line = {"file": path, "row": row, "reason": reason, "raw": raw}
        self._bad.write(json.dumps(line, ensure_ascii=False) + "\n")

    def take_back(self, path: str) -> None:
        """Uncount a staged row that `put_aside` will count again."""
        self.rows -= 1
        self.rows_of[path] -= 1

    def keep(self, table: pa.Table, source: Source, splits: np.ndarray, rows: np.ndarray) -> None:
        """Append clean rows; a new part begins where the columns change, as JSONL allows."""
        self.rows += table.num_rows
        self.rows_of[source.path] += table.num_rows
        fresh = [name for name in profile_columns(table.schema) if name not in self.profile]
        if fresh:
            check_distinct(source.path, [*self.profile, *fresh], [*REQUIRED, SPLIT, FILE, ROW])
        self.profile.update(dict.fromkeys(fresh))
        if len(self.profile) > MAX_PROFILE:
            names = ", ".join(list(self.profile)[:5])
            raise UserError(
                f"{source.path}: expected at most {MAX_PROFILE} profile columns; found more "
                f"({names} ...). Name those to use with ingest.profile."
            )
        table = (
            table.append_column(SPLIT, pa.array(splits, pa.int8()))
            .append_column(FILE, pa.array(np.full(table.num_rows, source.index, np.int32)))
            .append_column(ROW, pa.array(rows, pa.int64()))
        )
        if self._writer is None or not self._writer.schema.equals(table.schema):
            self.close_parts()
            self.parts.append(os.path.join(self.folder, f"part-{len(self.parts):05d}.parquet"))
            self._writer = pq.ParquetWriter(self.parts[-1], table.schema, compression="lz4")
        self._writer.write_table(table)
        note = f"{self.set_aside:,} set aside, {source.path}"
        self._progress.add(self.rows - self._progress.done, note)

    def stop_if_too_bad(self, *, early: bool = False) -> None:
        """Stop if too large a share of the rows is bad; `early`: only if it is half of many rows.

        If the allowed share is not 0, rows with an implausible time do not count, up to a tenth of
        all rows: they do not show that the log is read wrongly.

        Raises:
          UserError: more rows are bad than allowed.
        """
        untimely = sum(n for reason, n in self.reasons.items() if reason.startswith(UNTIMELY))
        spared = min(untimely, UNTIMELY_SHARE * self.rows) if self.max_bad_share else 0
        if self.set_aside - spared <= self.max_bad_share * self.rows:
            return
        if early and (self.rows < EARLY_STOP_ROWS or self.set_aside < 0.5 * self.rows):
            return
        self.close()
        common = "; ".join(f"{reason} ({n})" for reason, n in self.reasons.most_common(3))
        raise UserError(
            f"{self.set_aside} of {self.rows} rows were set aside, more than "
            f"ingest.max_bad_share={self.max_bad_share:g} allows. Commonest: {common}. Each is in "
            f"{self.set_aside_path} with its file and row; fix them or raise the share."
        )

    def close_parts(self) -> None:
        """Finish the part being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Finish all files and move the file of rows set aside into place."""
        self.close_parts()
        self._stack.close()
