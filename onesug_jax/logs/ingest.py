"""Stage `ingest`: a raw log, larger than memory, -> clean train, dev and test files.

Files are streamed in chunks through their adapter and `schema.validate`; what passes goes to
temporary Parquet, what does not goes to set_aside.jsonl with its reason. DuckDB then drops repeated
request ids, sorts everything by (timestamp_ms, request_id) on disk and splits it. Nothing is
dropped silently: rows == kept + set_aside. Text is normalised here, once; everybody downstream
takes it as it is.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.logs.adapter import Adapter
from onesug_jax.logs.adapters import choose_adapter, make_adapters
from onesug_jax.logs.database import connect, files, named
from onesug_jax.logs.find import find_files
from onesug_jax.logs.readers import Chunk, Source, read_chunks
from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES, LOG_SCHEMA, validate
from onesug_jax.logs.staging import FILE, ROW, SPLIT, Staging

SPLITS = ("train", "dev", "test")
DAY_MS = 86_400_000
ROW_GROUP = 65_536
DUPLICATE = "request_id seen before"

_BY_TIME = -1


@dataclass(frozen=True)
class IngestReport:
    """What became of a log's rows; `rows == kept + set_aside == sum(reasons.values()) + kept`."""

    rows: int
    kept: int
    set_aside: int
    reasons: dict[str, int]  # commonest first
    splits: dict[str, int]  # rows of each file written
    profile: list[str]


def ingest(
    log: str,
    out: str,
    *,
    adapter: str = "auto",
    dev_days: float = 2.0,
    test_days: float = 0.0,
    max_bad_share: float = 0.01,
    max_prefix: int = 64,
    max_query: int = 128,
    profile: Sequence[str] | None = None,
    prefixes: str = "one",
    seed: int = 0,
    memory_limit: str = "2GB",
) -> IngestReport:
    """Write out/{train,dev,test}.parquet, out/set_aside.jsonl and out/report.json from a raw log.

    A folder whose files (or their folders) are named train, dev, valid or test keeps those splits,
    and so does a log that names each row's split itself. Train without a dev gives up its last
    `dev_days` as dev. Anything else is split by time, counted back from the newest row: the last
    `test_days` are test, the `dev_days` before them dev, the rest train. A split without rows is
    not written.

    Args:
      log: a Parquet, JSONL or CSV file, a folder of them, or a glob. out: folder to write to; it
      also holds the temporary files, about the size of the log. adapter: "auto", or the name of one
      in `adapters`. dev_days: length of dev, in days. test_days: length of test, in days.
      max_bad_share: the largest share of rows that may be set aside, 0 to 1. max_prefix: longest
      prefix kept, in characters. max_query: longest query, shown entry or history entry kept, in
      characters. profile: names of the profile columns to keep; None keeps every column the schema
      does not name. prefixes: AmazonQAC only, which typed prefixes become rows: "one" (drawn),
      "last" or "all". seed: of the draws of adapters that derive or choose prefixes. memory_limit:
      what DuckDB may use for sorting before it goes to disk.

    Returns:
      the counts, also in report.json. Files are renamed into place at the end, report.json last.

    Raises:
      UserError: no such log, a file or column that is not what it should be, more bad rows than
        allowed (set_aside.jsonl is then written all the same), or no train rows left by the split.
    """
    if not 0 <= max_bad_share <= 1:
        raise UserError(f"ingest.max_bad_share={max_bad_share}: expected a share from 0 to 1.")
    if dev_days < 0 or test_days < 0:
        raise UserError(
            f"ingest.dev_days={dev_days}, ingest.test_days={test_days}: expected 0 or more days."
        )
    if os.path.isdir(log) and os.path.realpath(log) == os.path.realpath(out):
        raise UserError(
            f"ingest writes to {out!r}, the folder of the log itself. Name another one."
        )
    adapters = make_adapters(prefixes=prefixes, seed=seed, max_prefix=max_prefix, profile=profile)
    sources = find_files(log, without=out)
    chosen = choose_adapter(sources, adapter, adapters)
    sides = [source for source in sources if chosen.is_side(source.columns)]
    sources = [source for source in sources if source not in sides]
    if not sources:
        raise UserError(f"log {log!r}: only side tables of {chosen.name!r} found, no requests.")
    _check_names(log, sources)
    for source in sources:
        chosen.check(source)
    print(f"ingest: {len(sources)} file(s) of {log} as {chosen.name!r}", flush=True)
    unread = chosen.load_sides(sides)
    if unread:
        print(f"ingest: {unread} line(s) of the side tables could not be read", flush=True)

    try:
        os.makedirs(out, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".ingest-", dir=out)
    except OSError as error:
        raise UserError(
            f"ingest writes to {out!r}: expected a folder to write in; {error}"
        ) from None
    try:
        staging = Staging(temporary, max_bad_share, os.path.join(out, "set_aside.jsonl"))
        try:
            for source in sources:
                _read(source, chosen, staging, max_prefix=max_prefix, max_query=max_query)
            staging.close_parts()
            _check_not_empty(log, sources, staging)
            if not staging.parts:
                staging.stop_if_too_bad()
                raise UserError(
                    f"log {log!r}: all {staging.rows} rows were set aside, none is left to "
                    f"write. See {staging.set_aside_path}."
                )
            with connect(temporary, memory_limit) as database:
                _drop_repeats(database, staging, {source.index: source.path for source in sources})
                staging.stop_if_too_bad()
                report = _write_splits(database, staging, log, temporary, dev_days, test_days)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise UserError(
                f"sorting the log in {out!r} failed: {error}. Raise "
                f"ingest.memory_limit={memory_limit!r} or free disk space there."
            ) from None
        finally:
            staging.close()
        _publish(temporary, out, report)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _check_names(log: str, sources: Sequence[Source]) -> None:
    named = [source for source in sources if source.split]
    if named and len(named) < len(sources):
        other = next(source for source in sources if not source.split)
        raise UserError(
            f"log {log!r}: {named[0].path} is named after a split and {other.path} is not, so "
            "it is unclear where that belongs. Name all files train.*, dev.*, test.*, or none."
        )


def _check_not_empty(log: str, sources: Sequence[Source], staging: Staging) -> None:
    for split in dict.fromkeys(source.split for source in sources):
        files = [source for source in sources if source.split == split]
        if not any(staging.rows_of[source.path] for source in files):
            where = files[0].path if len(files) == 1 else f"{log}: {len(files)} files"
            raise UserError(f"{where}: no rows. Expected at least one row; remove or refill it.")


def _read(
    source: Source, adapter: Adapter, staging: Staging, *, max_prefix: int, max_query: int
) -> None:
    asks = SPLITS.index(source.split) if source.split else _BY_TIME
    wanted = [*adapter.needs(source), *adapter.optional]
    for chunk in read_chunks(source, only=wanted):
        for row, reason, raw in chunk.bad:
            staging.put_aside(source.path, row, reason, raw)
        if len(chunk.rows):
            rows = adapter.convert(chunk)
            for row, reason in sorted(rows.faults.items()):
                _put_aside(staging, chunk, row, reason)
            table, kept, reasons = validate(rows.table, max_prefix=max_prefix, max_query=max_query)
            for row, reason in sorted(reasons.items()):
                _put_aside(staging, chunk, int(rows.origin[row]), reason)
            numbers = np.asarray(chunk.rows, np.int64)[rows.origin[kept]]
            splits = np.full(len(kept), asks, np.int8)
            if rows.splits is not None and not source.split:
                splits = rows.splits[kept]
            if len(kept):
                staging.keep(table, source, splits, numbers)
        staging.stop_if_too_bad(early=True)


def _put_aside(staging: Staging, chunk: Chunk, row: int, reason: str) -> None:
    staging.put_aside(chunk.source.path, int(chunk.rows[row]), reason, chunk.raw(row))


def _drop_repeats(
    database: duckdb.DuckDBPyConnection, staging: Staging, paths: dict[int, str]
) -> None:
    """View `log` over the parts, with only the first row read of each request_id."""
    if not staging.parts:
        return
    database.execute(
        f"CREATE VIEW staged AS FROM read_parquet({files(staging.parts)}, union_by_name=true)"
    )
    database.execute(
        "CREATE TABLE repeats AS SELECT request_id FROM staged GROUP BY request_id "
        "HAVING count(*) > 1"
    )
    database.execute(
        f"""CREATE TABLE later AS SELECT * FROM (
              SELECT request_id, {FILE}, {ROW}, timestamp_ms, prefix, query, row_number() OVER (
                PARTITION BY request_id ORDER BY {FILE}, {ROW}) AS place
              FROM staged WHERE request_id IN (FROM repeats))
            WHERE place > 1"""
    )
    rows = database.execute(f"SELECT * FROM later ORDER BY {FILE}, {ROW}")
    repeated = 0
    while batch := rows.fetchmany(10_000):
        for request_id, file, row, stamp, prefix, query, _ in batch:
            said = {"request_id": request_id, "timestamp_ms": stamp}
            raw = json.dumps({**said, "prefix": prefix, "query": query}, ensure_ascii=False)
            staging.put_aside(paths[file], row, DUPLICATE, raw)
            staging.rows -= 1  # it was counted when it was kept
            staging.rows_of[paths[file]] -= 1
            repeated += 1
    keep = "staged"
    if repeated:
        keep = f"staged ANTI JOIN later USING (request_id, {FILE}, {ROW})"
    database.execute(f"CREATE VIEW log AS SELECT * FROM {keep}")


def _write_splits(
    database: duckdb.DuckDBPyConnection,
    staging: Staging,
    log: str,
    folder: str,
    dev_days: float,
    test_days: float,
) -> IngestReport:
    counts = dict(database.execute(f"SELECT {SPLIT}, count(*) FROM log GROUP BY 1").fetchall())
    rule, label = _split_rule(database, counts, log, dev_days, test_days)
    profile = sorted(staging.profile)
    there = {name for part in staging.parts for name in pq.read_schema(part).names}
    optional = {HISTORY: pa.list_(pa.string()), HISTORY_MINUTES: pa.list_(pa.float64())}
    fields = [*LOG_SCHEMA, *(pa.field(n, kind) for n, kind in optional.items() if n in there)]
    schema = pa.schema([*fields, *((name, pa.string()) for name in profile)])
    chosen = ", ".join(
        f"coalesce({named(name)}, '') AS {named(name)}" if name in profile else named(name)
        for name in schema.names
    )
    splits: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for place, split in enumerate(SPLITS):
        rows = database.sql(
            f"SELECT {chosen} FROM log WHERE ({rule}) = {place} ORDER BY timestamp_ms, request_id"
        ).to_arrow_reader(ROW_GROUP)
        path = os.path.join(folder, f"{split}.parquet")
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in rows:
                if not batch.num_rows:
                    continue
                writer.write_batch(batch.cast(schema))
                stamps = batch.column("timestamp_ms")
                first, _ = spans.get(split, (stamps[0].as_py(), 0))
                spans[split] = (first, stamps[-1].as_py())
                splits[split] = splits.get(split, 0) + batch.num_rows
        if split not in splits:
            os.remove(path)
    report = IngestReport(
        rows=staging.rows,
        kept=sum(splits.values()),
        set_aside=staging.set_aside,
        reasons=dict(staging.reasons.most_common()),
        splits=splits,
        profile=profile,
    )
    assert report.rows == report.kept + report.set_aside, "a row was lost between files"
    _print_table(report, spans, label)
    return report


def _split_rule(
    database: duckdb.DuckDBPyConnection,
    counts: dict[int, int],
    log: str,
    dev_days: float,
    test_days: float,
) -> tuple[str, str]:
    """The SQL that gives each row's split (0, 1, 2), and how to call it to a reader."""
    train_only = 0 in counts and 1 not in counts
    if counts.keys() <= {0, 1, 2} and not (train_only and dev_days > 0):
        return SPLIT, "as named"
    pool = _BY_TIME if _BY_TIME in counts else 0
    test_days = test_days if pool == _BY_TIME or 2 not in counts else 0.0
    [(first, last)] = database.execute(
        f"SELECT min(timestamp_ms), max(timestamp_ms) FROM log WHERE {SPLIT} = {pool}"
    ).fetchall()
    test_from = last - round(test_days * DAY_MS)
    dev_from = test_from - round(dev_days * DAY_MS)
    if first > dev_from:
        span = (last - first) / DAY_MS
        hint = " or check that timestamp_ms is in milliseconds, not seconds" if last < 1e11 else ""
        raise UserError(
            f"log {log!r} spans {span:.3g} days ({_day(first)} to {_day(last)}), so "
            f"ingest.dev_days={dev_days:g} and ingest.test_days={test_days:g} leave nothing to "
            f"train on. Lower them{hint}."
        )
    rule = (
        f"CASE WHEN {SPLIT} <> {pool} THEN {SPLIT} WHEN timestamp_ms > {test_from} THEN 2 "
        f"WHEN timestamp_ms > {dev_from} THEN 1 ELSE 0 END"
    )
    return rule, "by time" if pool == _BY_TIME else "as named, dev split off train by time"


def _print_table(report: IngestReport, spans: dict[str, tuple[int, int]], label: str) -> None:
    print(f"  {'rows read':<44}{report.rows:>12,}")
    for split, count in report.splits.items():
        first, last = spans[split]
        print(f"  {'  ' + split:<44}{count:>12,}  {_day(first)} .. {_day(last)}")
    print(f"  {'set aside':<44}{report.set_aside:>12,}")
    for reason, count in report.reasons.items():
        print(f"  {'  ' + reason:<44}{count:>12,}")
    print(f"  splits {label}; profile: {', '.join(report.profile) or 'none'}", flush=True)


def _publish(temporary: str, out: str, report: IngestReport) -> None:
    made = os.path.join(temporary, "report.json")
    write_json(made, dataclasses.asdict(report), ensure_ascii=False)
    for split in SPLITS:
        target = os.path.join(out, f"{split}.parquet")
        if split in report.splits:
            os.replace(os.path.join(temporary, f"{split}.parquet"), target)
        elif os.path.exists(target):
            os.remove(target)  # of an earlier run with other settings
    os.replace(made, os.path.join(out, "report.json"))


def _day(millis: int) -> str:
    return datetime.datetime.fromtimestamp(millis / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M")
