"""`bench.py --suite road`: what each stage before training costs on a large log.

The log is simulated a million rows at a time, each with a seed and people of its own, over one
catalogue of queries. Every stage is a command of its own, so that its peak memory is its alone;
processor seconds and memory are those of all its processes, Java included. The two trainings are a
few steps long: they do not grow with the log.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import read_events, skip
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.simulate import simulate
from onesug_jax.serve.heap import long_lived

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAGES = ("ingest", "mine", "align", "quantize", "index", "vocab", "examples", "rewards")
ALL_ROWS, CORES = 395_000_000, 64  # AmazonQAC; the machines of the extrapolation
# What does not grow with the rows beyond a setting: the memory of DuckDB (LogEngineConfig), and the
# texts that pieces are learnt from (two million).
BOUNDED_MEMORY, BOUNDED = ("ingest", "mine", "vocab"), ("vocab",)
_PIECE = 1_000_000
_SETTINGS = ("align.steps=20", "quantize.steps=20", "vocab.sid_levels=0", "ingest.dev_share=0.05")
_SUBREAPER = 36  # prctl: processes whose parent has ended become ours, to be waited for


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one command: seconds, processor seconds of all processes, peak bytes of the largest."""

    seconds: float
    processor: float
    peak: int


def road(sizes: Sequence[int], engines: Sequence[str]) -> None:
    """Prints the table of every size and engine, and what the largest says of 395 M rows."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    for engine in engines:
        measured: dict[int, dict[str, Cost]] = {}
        for rows in sizes:
            with tempfile.TemporaryDirectory() as folder:
                log = os.path.join(folder, "log.parquet")
                made = _run([sys.executable, __file__, log, str(rows)])
                print(f"{engine}, {rows:,} rows (simulated in {made.seconds:.0f} s)")
                measured[rows] = _stages(folder, log, engine)
                counting = _counting(os.path.join(folder, "work"))
            _table(measured[rows], rows)
            print(f"  {'of examples, one after another':<32} {counting * 1e6:28.1f} us a row")
        _extrapolate(measured, counting)


def _stages(folder: str, log: str, engine: str) -> dict[str, Cost]:
    found = {}
    flags = [f"--gin.{one}" for one in _SETTINGS]
    flags += [f"--gin.LOG={log}", f"--gin.WORK_DIR={folder}/work", f"--gin.ENGINE={engine}"]
    flags += [f"--gin.LogEngineConfig.scratch={folder}/scratch"]
    for stage in STAGES:
        found[stage] = _run([sys.executable, "-m", "onesug_jax.main", stage, *flags])
    return found


def _run(command: list[str]) -> Cost:
    """What a command costs, with all that it starts; ends the bench where it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "PYTHONPATH": ROOT}
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        failed, processor, peak = False, 0.0, 0
        while True:
            try:
                ended, status, used = os.wait4(-1, 0)
            except ChildProcessError:
                break
            failed |= ended == child.pid and status != 0
            processor += used.ru_utime + used.ru_stime
            peak = max(peak, used.ru_maxrss * 1024)
        child.returncode = int(failed)
        if failed:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read()[-4000:]}")
    return Cost(time.perf_counter() - began, processor, peak)


def _counting(work: str) -> float:
    """Processor seconds a row of what is not done side by side: the as-of state's own pass."""
    files = [os.path.join(work, "log", f"{split}.parquet") for split in ("train", "dev")]
    state = AsOf(CompletionIndex.load(os.path.join(work, "mined")).queries, AsOfConfig())
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    began = time.process_time()
    with long_lived():
        skip(state, read_events(files), lambda event: True)
    return (time.process_time() - began) / rows


def _table(found: dict[str, Cost], rows: int) -> None:
    print(f"  {'':<10} {'seconds':>9} {'CPU s':>9} {'us a row':>9} {'peak MiB':>9} {'B a row':>9}")
    for stage, cost in found.items():
        each = 1e6 * cost.processor / rows
        print(
            f"  {stage:<10} {cost.seconds:>9.1f} {cost.processor:>9.1f} {each:>9.1f} "
            f"{cost.peak / 2**20:>9.0f} {cost.peak / rows:>9.0f}"
        )


def _extrapolate(measured: dict[int, dict[str, Cost]], counting: float) -> None:
    """Both by the growth from the size before the largest to the largest, where there are two."""
    largest = max(measured)
    before = max((rows for rows in measured if rows < largest), default=0)
    hours, most = 0.0, 0.0
    for stage, cost in measured[largest].items():
        base = measured[before][stage] if before else Cost(0.0, 0.0, 0)
        more = (ALL_ROWS - largest) / (largest - before)
        processor, peak = cost.processor, float(cost.peak)
        if stage not in BOUNDED:
            processor += more * max(cost.processor - base.processor, 0.0)
        if stage not in BOUNDED_MEMORY:
            peak += more * max(cost.peak - base.peak, 0)
        parallel = stage in ("mine", "examples", "rewards")
        spent = processor / (CORES if parallel else 1)
        if stage == "examples":
            spent = max(spent, counting * ALL_ROWS)
        hours, most = hours + spent / 3600, max(most, peak)
        memory = "as set" if stage in BOUNDED_MEMORY else f"{peak / 2**30:.1f} GiB"
        print(
            f"  {stage:<10} at {ALL_ROWS:,} rows: {spent / 3600:.2f} h on "
            f"{CORES if parallel else 1} cores, memory {memory}"
        )
    print(f"  in all {hours:.1f} h, at most {most / 2**30:.1f} GiB a process")


def make_log(path: str, rows: int) -> None:
    """`rows` simulated rows in one Parquet file, made piece by piece."""
    distinct = max(50, int(20 * rows**0.5))
    writer: pq.ParquetWriter | None = None
    have = piece = 0
    while have < rows:
        wanted = min(_PIECE, rows - have)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
            simulate(folder, requests=wanted + 1000, distinct=distinct, ceiling=False, seed=piece)
            parts = [pq.read_table(os.path.join(folder, f"{n}.parquet")) for n in ("train", "dev")]
        part = _shifted(pa.concat_tables(parts).slice(0, wanted), piece)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part, row_group_size=65_536)
        have, piece = have + part.num_rows, piece + 1
    if writer:
        writer.close()


def _shifted(part: pa.Table, piece: int) -> pa.Table:
    """The rows of a piece under people, visits, requests and times that no other piece has."""
    for name in ("request_id", "user_id", "session_id"):
        own = pc.binary_join_element_wise(part[name], f"p{piece}", "-")
        part = part.set_column(part.schema.get_field_index(name), name, own)
    # Evenly between the milliseconds of the others: the month is the same for all.
    times = part["timestamp_ms"].to_numpy() + np.int64(piece)
    at = part.schema.get_field_index("timestamp_ms")
    return part.set_column(at, "timestamp_ms", pa.array(times))


if __name__ == "__main__":
    make_log(sys.argv[1], int(sys.argv[2]))
