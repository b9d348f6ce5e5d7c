"""Stage `ingest`: a raw log, larger than memory, -> clean train, dev and test files.

Files are streamed in chunks through their adapter and `schema.validate`. Accepted rows go to
temporary Parquet, the others to set_aside.jsonl with their reasons. DuckDB then sets repeated
request ids and far-away times aside (`sift`), chooses the profile columns (`profile_choice`), sorts
all rows by (timestamp_ms, request_id) on disk and splits them. No row is dropped silently:
rows == accepted + set_aside, and every physical line of a file is one of these or joined to one.
Later stages use the text as it is normalised here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from onesug_jax.errors import UserError, file_error
from onesug_jax.files import atomic_files, write_json
from onesug_jax.logs.adapter import Adapter
from onesug_jax.logs.adapters import choose_adapter, make_adapters
from onesug_jax.logs.clicks import Clicks
from onesug_jax.logs.database import connect
from onesug_jax.logs.find import find_files
from onesug_jax.logs.profile_choice import Verdict, choose_profile
from onesug_jax.logs.readers import Chunk, Source
from onesug_jax.logs.schema import SPLITS, validate
from onesug_jax.logs.sift import drop_far_away, drop_repeats
from onesug_jax.logs.splits import BY_TIME, Written, pool_of, schema_of, split_rule, write_splits
from onesug_jax.logs.staging import Staging
from onesug_jax.logs.times import day, plausible_span

REPORT = "report.json"
_FILES = tuple(f"{split}.parquet" for split in SPLITS)


@dataclass(frozen=True)
class IngestReport:
    """Counts of a log's rows; `rows == accepted + set_aside == accepted + sum(reasons.values())`.

    `joined` counts lines that are part of another row: the further lines of a cell over several
    lines, and items joined to their search (adapter "clicks").
    """

    rows: int
    accepted: int
    set_aside: int
    reasons: dict[str, int]  # commonest first
    splits: dict[str, int]  # rows of each file written
    profile: list[str]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # column -> reason
    joined: int = 0


def ingest(
    log: str,
    out: str,
    *,
    adapter: str = "auto",
    dev_share: float = 0.1,
    test_share: float = 0.0,
    max_bad_share: float = 0.01,
    max_prefix: int = 64,
    max_query: int = 128,
    profile: Sequence[str] | None = None,
    prefixes: str = "one",
    seed: int = 0,
    earliest: str = "1995-01-01",
    latest: str = "",
    clicks: Clicks | None = None,
    memory_limit: str = "2GB",
    check_only: bool = False,
) -> IngestReport | None:
    """Write out/{train,dev,test}.parquet, out/set_aside.jsonl and out/report.json from a raw log.

    Files (or folders) named train, dev, valid or test have these splits, and a log may also name
    the split of each row. If there is a train and no dev split, the newest `dev_share` of train
    becomes dev. Any other log is split by time: the newest `test_share` of its rows are test, the
    `dev_share` before them dev, the rest train. Rows of one millisecond are in the same split. A
    split without rows is not written.

    Args:
      log: a Parquet, JSONL or CSV file, a folder of them, or a glob. out: folder to write to; it
      also holds the temporary files, about the size of the log. adapter: "auto", the name of one
      in `adapters`, or the import path of another. dev_share, test_share: of the rows, 0 to 1.
      max_bad_share: the largest share of rows that may be set aside, 0 to 1. max_prefix: longest
      prefix accepted, in characters. max_query: longest query, shown or history entry accepted, in
      characters. profile: names of the profile columns; None: those of few values that do not
      reveal the query (`profile_choice`). prefixes: AmazonQAC only, which typed prefixes become
      rows: "one" (drawn), "last" or "all". seed: of adapters that draw prefixes. earliest, latest:
      ISO dates or times outside of which a row is set aside; latest "" is a day from now. clicks:
      the columns of adapter "clicks", if their names do not identify them. memory_limit: memory of
      DuckDB's sort, which continues on disk. check_only: open the log, check its columns and the
      settings, write nothing and return None.

    Returns:
      the counts, also in report.json. Files are renamed into place at the end, report.json last.

    Raises:
      UserError: no such log, a faulty file or column, more bad rows than allowed (set_aside.jsonl
        is written even then), or no train rows left by the split.
    """
    if not 0 <= max_bad_share <= 1:
        raise UserError(f"ingest.max_bad_share={max_bad_share}: expected a share from 0 to 1.")
    if not (dev_share >= 0 and test_share >= 0 and dev_share + test_share < 1):
        raise UserError(
            f"ingest.dev_share={dev_share}, ingest.test_share={test_share}: expected shares of the "
            "rows, 0 or more and less than 1 in sum, so that some are left to train on."
        )
    log = os.path.expanduser(log)
    plausible = plausible_span(earliest, latest)
    if os.path.isdir(log) and os.path.realpath(log) == os.path.realpath(out):
        raise UserError(
            f"ingest writes to {out!r}, the folder of the log itself. Name another one."
        )
    adapters = make_adapters(
        prefixes=prefixes,
        seed=seed,
        max_prefix=max_prefix,
        profile=profile,
        plausible=plausible,
        clicks=clicks,
    )
    sources = find_files(log, without=out)
    chosen = choose_adapter(sources, adapter, adapters)
    sides = [source for source in sources if chosen.is_side(source.columns)]
    sources = [source for source in sources if source not in sides]
    if not sources:
        raise UserError(f"log {log!r}: only side tables of {chosen.name!r} found, no requests.")
    _check_names(log, sources)
    for source in sources:
        chosen.check(source)
    if check_only:
        return None
    print(f"ingest: {len(sources)} file(s) of {log} as {chosen.name!r}", flush=True)
    for note in dict.fromkeys(source.note for source in sources if source.note):
        path = next(source.path for source in sources if source.note == note)
        print(f"ingest: {path}: {note}", flush=True)
    unread = chosen.load_sides(sides)
    if unread:
        print(f"ingest: {unread} line(s) of the side tables could not be read", flush=True)

    with _file_errors(out), contextlib.ExitStack() as stack:
        try:
            new = stack.enter_context(atomic_files(out, REPORT, _FILES))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".ingest-", dir=out))
        except OSError as error:
            raise file_error(
                out, "ingest: expected a folder to write in: writing there", error
            ) from None
        staging = Staging(scratch, max_bad_share, os.path.join(out, "set_aside.jsonl"))
        try:
            check = functools.partial(
                validate,
                max_prefix=max_prefix,
                max_query=max_query,
                plausible=plausible if chosen.dated else None,
            )
            for source in sources:
                _read(source, chosen, staging, check)
            staging.close_parts()
            _check_not_empty(log, sources, staging)
            if not staging.parts:
                staging.stop_if_too_bad()
                raise UserError(
                    f"log {log!r}: all {staging.rows} rows were set aside, none is left to "
                    f"write. See {staging.set_aside_path}."
                )
            paths = {source.index: source.path for source in sources}
            pa.default_memory_pool().release_unused()  # the rows are on disk; sorting needs memory
            with connect(scratch, memory_limit) as database:
                drop_repeats(database, staging, paths)
                pool = pool_of(database, dev_share)
                if pool is not None and chosen.dated:
                    split = bool(dev_share or test_share)
                    drop_far_away(database, staging, paths, pool, only_later=not split)
                staging.stop_if_too_bad()
                verdicts = choose_profile(database, sorted(staging.profile), profile)
                rule, label = split_rule(database, pool, log, dev_share, test_share)
                columns = schema_of(staging, [one.name for one in verdicts if not one.reason])
                written = write_splits(database, rule, columns, new)
            report = _report(staging, verdicts, written, label)
            write_json(os.path.join(new, REPORT), dataclasses.asdict(report), ensure_ascii=False)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise UserError(
                f"sorting the log in {out!r} failed: {error}. Raise "
                f"ingest.memory_limit={memory_limit!r} or free disk space there."
            ) from None
        finally:
            staging.close()
    return report


@contextlib.contextmanager
def _file_errors(out: str) -> Iterator[None]:
    """Convert OSError to an error that names `out`."""
    try:
        yield
    except OSError as error:
        raise file_error(out, "writing there", error) from None


def _check_names(log: str, sources: Sequence[Source]) -> None:
    named = [source for source in sources if source.split]
    if named and len(named) < len(sources):
        other = next(source for source in sources if not source.split)
        raise UserError(
            f"log {log!r}: {named[0].path} is named after a split and {other.path} is not, so "
            "its split is unclear. Name all files train.*, dev.*, test.*, or none."
        )


def _check_not_empty(log: str, sources: Sequence[Source], staging: Staging) -> None:
    for split in dict.fromkeys(source.split for source in sources):
        files = [source for source in sources if source.split == split]
        if not any(staging.rows_of[source.path] for source in files):
            where = files[0].path if len(files) == 1 else f"{log}: {len(files)} files"
            raise UserError(f"{where}: no rows. Expected at least one row; remove or refill it.")


def _read(
    source: Source,
    adapter: Adapter,
    staging: Staging,
    check: Callable[[pa.Table], tuple[pa.Table, np.ndarray, dict[int, str]]],
) -> None:
    split = SPLITS.index(source.split) if source.split else BY_TIME
    for chunk in adapter.chunks(source):
        staging.joined += chunk.joined
        for row, reason, raw in chunk.bad:
            staging.put_aside(source.path, row, reason, raw)
        if len(chunk.rows):
            rows = adapter.convert(chunk)
            staging.joined += rows.joined
            staging.units += rows.units
            for row, reason in sorted(rows.faults.items()):
                _put_aside(staging, chunk, row, reason)
            table, accepted, reasons = check(rows.table)
            for row, reason in sorted(reasons.items()):
                _put_aside(staging, chunk, int(rows.origin[row]), reason)
            numbers = np.asarray(chunk.rows, np.int64)[rows.origin[accepted]]
            splits = np.full(len(accepted), split, np.int8)
            if rows.splits is not None and not source.split:
                splits = rows.splits[accepted]
            if len(accepted):
                staging.keep(table, source, splits, numbers)
        staging.stop_if_too_bad(early=True)


def _put_aside(staging: Staging, chunk: Chunk, row: int, reason: str) -> None:
    staging.put_aside(chunk.source.path, int(chunk.rows[row]), reason, chunk.raw(row))


def _report(
    staging: Staging, verdicts: Sequence[Verdict], written: dict[str, Written], label: str
) -> IngestReport:
    report = IngestReport(
        rows=staging.rows,
        accepted=sum(one.rows for one in written.values()),
        set_aside=staging.set_aside,
        reasons=dict(staging.reasons.most_common()),
        splits={split: one.rows for split, one in written.items()},
        profile=[verdict.name for verdict in verdicts if not verdict.reason],
        left_out={verdict.name: verdict.reason for verdict in verdicts if verdict.reason},
        joined=staging.joined,
    )
    assert report.rows == report.accepted + report.set_aside, "a row was lost between files"
    _print_table(report, written, label)
    _print_columns(verdicts, staging)
    return report


def _print_table(report: IngestReport, written: dict[str, Written], label: str) -> None:
    print(f"  {'rows read':<44}{report.rows:>12,}")
    for split, one in written.items():
        print(f"  {'  ' + split:<44}{one.rows:>12,}  {day(one.first)} .. {day(one.last)}")
    if report.joined:
        print(f"  {'lines that belong to another row':<44}{report.joined:>12,}")
    print(f"  {'set aside':<44}{report.set_aside:>12,}")
    for reason, count in report.reasons.items():
        print(f"  {'  ' + reason:<44}{count:>12,}")
    print(f"  splits {label}", flush=True)


def _print_columns(verdicts: Sequence[Verdict], staging: Staging) -> None:
    chosen = [f"{v.name} ({v.values:,} values)" for v in verdicts if not v.reason]
    print(f"  profile: {', '.join(chosen) or 'none'}")
    others = [f"{v.name} {v.reason}" for v in verdicts if v.reason]
    if others:
        print(f"  no profile: {'; '.join(others)}. Change it with --gin.ingest.profile=[...]")
    if staging.units:
        counts = ", ".join(f"{count:,} in {unit}" for unit, count in staging.units.items())
        print(f"  times converted to milliseconds: {counts}")
    print(end="", flush=True)
