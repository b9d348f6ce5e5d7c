"""Times the mining of a large log: seconds, peak memory and rows of every table.

  python launch/bench_mining.py --rows 1_000_000
  python launch/bench_mining.py                       10 million rows; several minutes to make them
  python launch/bench_mining.py --log train.parquet   a log of one's own

The log is simulated a million rows at a time, each with a seed and people of its own, over one
catalogue of queries. Each part runs in a process of its own, so that mining's peak memory is its
alone. Processor seconds are given too: they say more than the clock where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from onesug_jax.logs.mining import TABLES, mine  # noqa: E402
from onesug_jax.logs.simulate import simulate  # noqa: E402

PIECE = 1_000_000
OVER = 1.1  # of the simulated rows about 7 % go to the dev split


def make_log(path: str, rows: int) -> None:
    """`rows` simulated train rows in one Parquet file, made piece by piece."""
    distinct = max(50, int(20 * rows**0.5))
    writer: pq.ParquetWriter | None = None
    have = piece = 0
    while have < rows:
        wanted = min(PIECE, rows - have)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
            simulate(
                folder,
                requests=int(wanted * OVER) + 100,
                distinct=distinct,
                ceiling=False,
                seed=piece,
            )
            part = pq.read_table(os.path.join(folder, "train.parquet")).slice(0, wanted)
        part = shifted(part, piece)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part, row_group_size=65_536)
        have, piece = have + part.num_rows, piece + 1
        print(f"simulated {have:,} rows, {time.perf_counter() - began:.0f} s", flush=True)
    if writer:
        writer.close()


def shifted(part: pa.Table, piece: int) -> pa.Table:
    """The rows of a piece under people, visits, requests and times that no other piece has."""
    for name in ("request_id", "user_id", "session_id"):
        own = pc.binary_join_element_wise(part[name], f"p{piece}", "-")
        part = part.set_column(part.schema.get_field_index(name), name, own)
    # Evenly between the milliseconds of the others: the month is the same for all.
    times = part["timestamp_ms"].to_numpy() + np.int64(piece)
    at = part.schema.get_field_index("timestamp_ms")
    return part.set_column(at, "timestamp_ms", pa.array(times))


def alone(task: str, *arguments: str) -> str:
    """What `task` prints last, in a process of its own; the rest is shown as it comes."""
    command = [sys.executable, "-u", __file__, "--child", task, *arguments]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(last, end="", flush=True)
            last = line
    if process.returncode:
        raise SystemExit(process.returncode)
    return last


def child(task: str, *arguments: str) -> None:
    if task == "make":
        path, rows = arguments
        make_log(path, int(rows))
        return
    log, out, memory_limit, engine = arguments
    began = time.perf_counter()
    mine(log, out, engine=engine, memory_limit=memory_limit)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    measured = {"seconds": seconds, "processor": processor, "peak": used.ru_maxrss * 1024}
    print(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=10_000_000)
    parser.add_argument("--log", help="mine this Parquet file instead of a simulated one")
    parser.add_argument("--engine", default="duckdb")
    parser.add_argument("--memory_limit", default="4GB")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        log = asked.log
        if log is None:
            log = os.path.join(folder, "train.parquet")
            print(alone("make", log, str(asked.rows)), end="")
        out = os.path.join(folder, "mined")
        os.makedirs(out)
        measured = json.loads(alone("mine", log, out, asked.memory_limit, asked.engine))
        rows = pq.ParquetFile(log).metadata.num_rows
        print(f"{platform.machine()}, {os.cpu_count()} cores, {asked.engine}, {rows:,} rows")
        print(
            f"  {measured['seconds']:.1f} s ({measured['processor']:.1f} processor seconds), "
            f"peak {measured['peak'] / 2**30:.2f} GiB resident"
        )
        for name in TABLES:
            path = os.path.join(out, f"{name}.parquet")
            size = os.path.getsize(path) / 2**20
            print(
                f"  {name:<13} {pq.ParquetFile(path).metadata.num_rows:>12,} rows {size:8.1f} MiB"
            )


if __name__ == "__main__":
    main()
