#!/usr/bin/env python
"""What a log will take before training: disk, memory and hours, beside what this machine has.

    python launch/needs.py --data FOLDER --work WORK_DIR

From the growth between 100,000 and 1,000,000 rows in the table of docs/scale.md (`python
launch/bench.py --suite road`, on cores that other work shared), so rather too high. Ends with 1
where the disk is too small; nothing is written.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq

# Of a row, over all stages before training: processor seconds that all cores share (ingest, mine,
# examples), those that one does (quantize, index, rewards), bytes of the largest process, and bytes
# on the disk (WORK_DIR of shoplog_live). Of a row of JSON, the bytes of KuaiSearch's files.
SHARED, ALONE, MEMORY, DISK, TEXT = 620e-6, 75e-6, 300, 1_500, 1_000
BASE = 1_000_000_000  # bytes of memory, however short the log


def rows_of(data: pathlib.Path) -> int:
    """How many rows a file or the files of a folder have: counted in Parquet, else guessed."""
    files = [data] if data.is_file() else [path for path in data.rglob("*") if path.is_file()]
    total = 0
    for path in files:
        if path.suffix == ".parquet":
            try:
                total += pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowException):
                continue  # `ingest` names it
        else:
            total += path.stat().st_size // TEXT
    return total


def duration(seconds: float) -> str:
    """In minutes or hours."""
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def main() -> int:
    """Prints the three lines; 1 where the disk is too small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    options = parser.parse_args()
    rows, cores = rows_of(options.data), len(os.sched_getaffinity(0))
    there = options.work.resolve()
    used = sum(path.stat().st_size for path in there.rglob("*") if path.is_file())
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    disk, memory = rows * DISK, BASE + rows * MEMORY
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hours = [duration(rows * (ALONE + SHARED / n)) for n in (cores, 64)]
    print(
        f"{rows:,} rows: about {hours[0]} before training on the {cores} cores here, {hours[1]} on "
        f"64\n  disk: {disk / 1e9:.1f} GB in {options.work}, {free / 1e9:.1f} GB are free\n"
        f"  memory: {memory / 1e9:.1f} GB, this machine has {has / 1e9:.1f}",
        flush=True,
    )
    if disk - used > free:
        print(
            f"error: {options.work}: the disk is too small; name a folder on a larger one with "
            "--work, or fewer files with --data",
            file=sys.stderr,
        )
        return 1
    if memory > has:
        print("  that is more memory than here: the stage that runs out of it ends", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
