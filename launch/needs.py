#!/usr/bin/env python
"""Estimates the disk, memory and time of a log before training, compared with this machine.

    python launch/needs.py --data FOLDER --work WORK_DIR

The estimates extrapolate the growth between 100,000 and 1,000,000 rows in the table of
docs/scale.md (`python launch/bench.py --suite road`). They are rather high, because those cores had
other load. The exit code is 1 if the disk is too small. Writes nothing.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq

# Per row, over all stages before training: CPU seconds of parallel work (ingest, mine, examples)
# and of serial work (quantize, index, rewards), bytes of the largest process, bytes on the disk
# (WORK_DIR of shoplog_live); bytes of a row of JSON (KuaiSearch's files).
SHARED, ALONE, MEMORY, DISK, TEXT = 620e-6, 75e-6, 300, 1_500, 1_000
BASE = 1_000_000_000  # bytes of memory for any log


def rows_of(data: pathlib.Path) -> int:
    """The number of rows of a file or of a folder's files: counted in Parquet, else estimated."""
    files = [data] if data.is_file() else [path for path in data.rglob("*") if path.is_file()]
    total = 0
    for path in files:
        if path.suffix == ".parquet":
            try:
                total += pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowException):
                continue  # `ingest` reports it
        else:
            total += path.stat().st_size // TEXT
    return total


def duration(seconds: float) -> str:
    """Seconds as minutes or hours."""
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def main() -> int:
    """Prints the estimates; returns 1 if the disk is too small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    options = parser.parse_args()
    rows, cores = rows_of(options.data), len(os.sched_getaffinity(0))
    folder = options.work.resolve()
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    disk, memory = rows * DISK, BASE + rows * MEMORY
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hours = [duration(rows * (ALONE + SHARED / n)) for n in (cores, 64)]
    print(
        f"{rows:,} rows: about {hours[0]} before training on the {cores} cores here, {hours[1]} on "
        f"64\n  disk: {disk / 1e9:.1f} GB in {options.work}, {free / 1e9:.1f} GB are free\n"
        f"  memory: {memory / 1e9:.1f} GB, this machine has {installed / 1e9:.1f}",
        flush=True,
    )
    if disk - used > free:
        print(
            f"error: {options.work}: the disk is too small; name a folder on a larger one with "
            "--work, or fewer files with --data",
            file=sys.stderr,
        )
        return 1
    if memory > installed:
        print("  this machine may have too little memory; a stage may fail", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
