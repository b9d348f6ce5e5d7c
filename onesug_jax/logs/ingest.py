"""Stage `ingest`: a raw log, larger than memory, -> clean train, dev and test files.

Tasks of the engine stream the files, one each, in chunks through their adapter and
`schema.validate`. Accepted rows go to temporary Parquet, the others to set_aside.jsonl with their
reasons. The engine then sets repeated request ids and far-away times aside (`sift`), chooses the
profile columns (`profile_choice`), sorts all rows by (timestamp_ms, request_id) and splits them.
No row is dropped silently: rows == accepted + set_aside, and every physical line of a file is one
of these or joined to one. Later stages use the text as it is normalised here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from onesug_jax.errors import UserError, file_error
from onesug_jax.files import atomic_files, atomic_write, write_json
from onesug_jax.logs.adapters import choose_adapter, make_adapters
from onesug_jax.logs.clicks import Clicks
from onesug_jax.logs.engines import DEFAULT, LogEngineConfig, open_engine
from onesug_jax.logs.find import find_files
from onesug_jax.logs.profile_choice import Verdict, choose_profile
from onesug_jax.logs.readers import Source
from onesug_jax.logs.schema import SPLITS, validate
from onesug_jax.logs.sift import Sift
from onesug_jax.logs.splits import (
    Written,
    hours_of,
    requested_splits,
    schema_of,
    split_rule,
    write_splits,
)
from onesug_jax.logs.staging import FileReader, SetAside, Staged, set_aside_files
from onesug_jax.logs.times import day, plausible_span
from onesug_jax.logs.workers import results
from onesug_jax.progress import Progress

REPORT = "report.json"
SET_ASIDE = "set_aside.jsonl"
_FILES = tuple(f"{split}.parquet" for split in SPLITS)
_ONE_PROCESS = 64 << 20  # bytes: a smaller log is read by this process alone
_LAST = 10**10 - 1  # number of the file of rows set aside after all are read


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
    engine: LogEngineConfig = DEFAULT,
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
      also holds the temporary files, about the size of the log, unless the engine has a folder for
      these. engine: which engine; all give the same files. adapter: "auto", the name of one
      in `adapters`, or the import path of another. dev_share, test_share: of the rows, 0 to 1.
      max_bad_share: the largest share of rows that may be set aside, 0 to 1. max_prefix: longest
      prefix accepted, in characters. max_query: longest query, shown or history entry accepted, in
      characters. profile: names of the profile columns; None: those of few values that do not
      reveal the query (`profile_choice`). prefixes: AmazonQAC only, which typed prefixes become
      rows: "one" (drawn), "last" or "all". seed: of adapters that draw prefixes. earliest, latest:
      ISO dates or times outside of which a row is set aside; latest "" is a day from now. clicks:
      the columns of adapter "clicks", if their names do not identify them. check_only: open the
      log, check its columns and the settings, write nothing and return None.

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

    check = functools.partial(
        validate,
        max_prefix=max_prefix,
        max_query=max_query,
        plausible=plausible if chosen.dated else None,
    )
    with _file_errors(out), contextlib.ExitStack() as stack:
        try:
            new = stack.enter_context(atomic_files(out, REPORT, _FILES))
            if engine.scratch is not None:
                os.makedirs(engine.scratch, exist_ok=True)
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".ingest-", dir=engine.scratch or out)
            )
        except OSError as error:
            raise file_error(
                out, "ingest: expected a folder to write in: writing there", error
            ) from None
        running = stack.enter_context(open_engine(engine, scratch))
        stack.enter_context(_set_aside_file(out, scratch))
        reader = FileReader(chosen, check, scratch, max_bad_share)
        staged = _read(log, sources, reader, engine, out)
        pa.default_memory_pool().release_unused()  # the rows are on disk; sorting needs memory
        aside = stack.enter_context(SetAside(staged, scratch, _LAST))
        sift = Sift(
            running,
            running.read(*staged.parts),
            staged,
            aside,
            {source.index: source.path for source in sources},
        )
        sift.drop_repeats()
        splits = requested_splits(running, sift.log)
        hours = hours_of(running, sift.log, splits, dev_share)
        if hours is not None and chosen.dated:
            hours = sift.drop_far_away(hours, only_later=not (dev_share or test_share))
        if staged.too_bad(max_bad_share):
            raise _too_bad(staged, max_bad_share, out)
        verdicts = choose_profile(running, sift.log, staged, profile)
        rule = split_rule(running, sift.log, log, splits, hours, dev_share, test_share)
        columns = schema_of(staged, [one.name for one in verdicts if not one.reason])
        written = write_splits(running, sift.log, rule, columns, new)
        report = _report(staged, verdicts, written, rule.label)
        write_json(os.path.join(new, REPORT), dataclasses.asdict(report), ensure_ascii=False)
    return report


@contextlib.contextmanager
def _set_aside_file(out: str, scratch: str) -> Iterator[None]:
    """Joins the rows set aside into out/set_aside.jsonl at the end, also after an error."""
    try:
        yield
    finally:
        with atomic_write(os.path.join(out, SET_ASIDE)) as whole:
            for path in set_aside_files(scratch):
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, whole)


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


def _read(
    log: str, sources: Sequence[Source], reader: FileReader, engine: LogEngineConfig, out: str
) -> Staged:
    """Reads all files, several at a time if the log is large.

    Raises:
      UserError: a file cannot be read, a split has no rows, or too many rows are bad.
    """
    staged = Staged()
    size = sum(os.path.getsize(source.path) for source in sources)
    many = len(sources) > 1 and (engine.name == "spark" or size >= _ONE_PROCESS)
    with Progress("ingest") as progress:
        if many:
            reads = results(engine, reader.folder, reader, sources)
        else:
            reads = (reader(source, progress) for source in sources)
        for source, read in zip(sources, reads, strict=True):
            staged.add(source.path, read)
            if many:
                progress.add(read.rows, f"{staged.set_aside:,} set aside, {source.path}")
            if read.hopeless(reader.max_bad_share) or staged.hopeless(reader.max_bad_share):
                raise _too_bad(staged, reader.max_bad_share, out)
    for split in dict.fromkeys(source.split for source in sources):
        files = [source for source in sources if source.split == split]
        if not any(staged.rows_of[source.path] for source in files):
            where = files[0].path if len(files) == 1 else f"{log}: {len(files)} files"
            raise UserError(f"{where}: no rows. Expected at least one row; remove or refill it.")
    if not staged.parts:
        if staged.too_bad(reader.max_bad_share):
            raise _too_bad(staged, reader.max_bad_share, out)
        raise UserError(
            f"log {log!r}: all {staged.rows} rows were set aside, none is left to write. See "
            f"{os.path.join(out, SET_ASIDE)}."
        )
    return staged


def _too_bad(staged: Staged, max_bad_share: float, out: str) -> UserError:
    common = "; ".join(f"{reason} ({n})" for reason, n in staged.reasons.most_common(3))
    return UserError(
        f"{staged.set_aside} of {staged.rows} rows were set aside, more than "
        f"ingest.max_bad_share={max_bad_share:g} allows. Commonest: {common}. Each is in "
        f"{os.path.join(out, SET_ASIDE)} with its file and row; fix them or raise the share."
    )


def _report(
    staged: Staged, verdicts: Sequence[Verdict], written: dict[str, Written], label: str
) -> IngestReport:
    report = IngestReport(
        rows=staged.rows,
        accepted=sum(one.rows for one in written.values()),
        set_aside=staged.set_aside,
        reasons=dict(staged.reasons.most_common()),
        splits={split: one.rows for split, one in written.items()},
        profile=[verdict.name for verdict in verdicts if not verdict.reason],
        left_out={verdict.name: verdict.reason for verdict in verdicts if verdict.reason},
        joined=staged.joined,
    )
    assert report.rows == report.accepted + report.set_aside, "a row was lost between files"
    _print_table(report, written, label)
    _print_columns(verdicts, staged)
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


def _print_columns(verdicts: Sequence[Verdict], staged: Staged) -> None:
    chosen = [f"{v.name} ({v.values:,} values)" for v in verdicts if not v.reason]
    print(f"  profile: {', '.join(chosen) or 'none'}")
    others = [f"{v.name} {v.reason}" for v in verdicts if v.reason]
    if others:
        print(f"  no profile: {'; '.join(others)}. Change it with --gin.ingest.profile=[...]")
    if staged.units:
        counts = ", ".join(f"{count:,} in {unit}" for unit, count in staged.units.items())
        print(f"  times converted to milliseconds: {counts}")
    print(end="", flush=True)
