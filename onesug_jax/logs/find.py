"""A path, folder or glob -> the files of a log, with the columns of each.

No file is left out silently: files of a folder that are not part of the log are printed, and a file
of the log that cannot be read raises UserError.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import os
import re
import stat
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, file_error
from onesug_jax.files import mode_of
from onesug_jax.logs.lines import CODECS, is_utf8, physical_lines, show, stem
from onesug_jax.logs.readers import ONESUG_COLUMNS, Source, parse_json, unnamed, unreadable

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
}
HEAD_ROWS = 1_000
_ARCHIVES = (".zip", ".7z", ".rar", ".xz", ".tar", ".tgz", ".z", ".snappy", ".lzo")
_SPLIT_NAME = re.compile(r"(train|dev|valid|validation|test)([-_.].*)?", re.IGNORECASE)
_KINDS = f"{' '.join(sorted(SUFFIXES))}, text also {' '.join(CODECS)}"


def find_files(log: str, *, without: str = "") -> list[Source]:
    """The files of `log` (a file, a folder with its subfolders, or a glob), sorted by path.

    In a folder, hidden files and files beginning with "_" are skipped, and files of other kinds are
    skipped and printed. Files (or folders) named train, dev, valid or test have that split.

    Args:
      log: path or glob pattern; "~" is the home folder. "[" is literal in the names of existing
        folders.
      without: a folder whose files are not part of the log (where results are written).

    Raises:
      UserError: no files, an unknown kind of file, a file that is empty or cannot be read.
    """
    log = os.path.expanduser(log)
    mode = mode_of(log)
    root = None
    if mode and stat.S_ISDIR(mode):
        paths, root = list(_walk(log)), log
    elif mode and stat.S_ISREG(mode):
        paths = [log]
    elif mode:
        raise UserError(f"log {log!r}: expected a file or a folder, found neither.")
    else:
        paths = [path for path in _glob(log) if os.path.isfile(path)]
        if not paths:
            raise UserError(
                f"log {log!r}: expected a file, a folder or a glob that matches files; found "
                "nothing. Check the path (a glob needs quotes in a shell)."
            )
    if without:
        inside = os.path.abspath(without) + os.sep
        paths = [path for path in paths if not os.path.abspath(path).startswith(inside)]
    alone = len(paths) == 1 and root is None
    sources: list[Source] = []
    skipped: list[str] = []
    for path in sorted(paths):
        source = None
        if alone or _kind(path) or _is_packed_log(path):
            source = sniff(path, split=_split_of(os.path.relpath(path, root)) if root else None)
        if source and not alone and stem(path).endswith(".txt") and source.kind != "onesug":
            source = None  # notes beside the data
        if source:
            sources.append(dataclasses.replace(source, index=len(sources)))
        else:
            skipped.append(path)
    if skipped:
        names = ", ".join(os.path.relpath(path, root) if root else path for path in skipped[:5])
        more = ", ..." if len(skipped) > 5 else ""
        print(f"log {log}: {len(skipped)} other file(s) skipped: {names}{more}", flush=True)
    if not sources:
        raise UserError(f"log {log!r}: expected files of a log ({_KINDS}); found none.")
    return sources


def sniff(path: str, *, split: str | None = None) -> Source:
    """Kind and columns of one file from its beginning.

    Raises:
      UserError: the file is empty or unreadable, or its kind is unknown or not that of its name.
    """
    kind = _kind(path)
    if kind is None:
        raise UserError(
            f"{path}: expected a name ending in one of {_KINDS}; found {os.path.basename(path)!r}. "
            "Rename, unpack or convert the file."
        )
    try:
        if os.path.getsize(path) == 0:
            raise UserError(f"{path}: the file is empty (0 bytes). Remove it or write it again.")
        if kind == "parquet":
            schema = pq.read_schema(path)
            source = Source(path, kind, dict(zip(schema.names, schema.types, strict=True)), split)
            if len(source.columns) < len(schema.names):
                raise UserError(f"{path}: expected each column name once; found {schema.names}.")
            return _without_unnamed(source, tuple(schema.names))
        with open(path, "rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: expected UTF-8 text, found UTF-16. Save it as UTF-8.")
        return (_sniff_jsonl if kind == "jsonl" else _sniff_csv)(path, split)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, kind, error) from None


def _walk(root: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise file_error(root, "listing the folder", error)

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*links, *names):  # a linked folder is not entered, but printed as skipped
            if not name.startswith((".", "_")):
                yield os.path.join(folder, name)


def _glob(pattern: str) -> list[str]:
    """The files that match; the longest leading part that is an existing folder is literal."""
    parts = pattern.split(os.sep)
    for count in range(len(parts) - 1, 0, -1):
        folder = os.sep.join(parts[:count]) or os.sep
        if os.path.isdir(folder):
            return glob.glob(os.path.join(glob.escape(folder), *parts[count:]), recursive=True)
    return glob.glob(pattern, recursive=True)


def _kind(path: str) -> str | None:
    name = stem(path)
    kind = SUFFIXES.get(os.path.splitext(name)[1])
    return None if kind == "parquet" and name != os.path.basename(path).lower() else kind


def _is_packed_log(path: str) -> bool:
    name, end = os.path.splitext(os.path.basename(path).lower())
    return end in (*_ARCHIVES, *CODECS) and os.path.splitext(name)[1] in SUFFIXES


def _split_of(relative: str) -> str | None:
    for part in relative.split(os.sep)[::-1]:
        match = _SPLIT_NAME.fullmatch(part)
        if match:
            name = match.group(1).lower()
            return "dev" if name.startswith("valid") else name
    return None


def _without_unnamed(source: Source, names: tuple[str, ...]) -> Source:
    places = [place for place, name in enumerate(names, 1) if unnamed(name)]
    if not places:
        return source
    columns = {name: kind for name, kind in source.columns.items() if not unnamed(name)}
    which = ", ".join(map(str, places))
    note = f"column {which} has no name of its own (an index?) and is left out"
    return dataclasses.replace(source, columns=columns, note=note)


def _sniff_jsonl(path: str, split: str | None) -> Source:
    keys: dict[str, None] = {}
    objects, first = 0, ""
    for seen, (number, line) in enumerate(physical_lines(path)):
        first = first or line[:80]
        if first.lstrip().startswith("["):
            name = json.dumps(os.path.basename(path), ensure_ascii=False)
            raise UserError(
                f"{path}: expected JSON lines (one object a line), found one JSON array. "
                f"Write one object a line: jq -c '.[]' {name} > rows.jsonl"
            )
        record = parse_json(number, line)
        if not record.reason:
            keys.update(dict.fromkeys(record.value))
            objects += 1
        if objects >= HEAD_ROWS or seen >= 10 * HEAD_ROWS:
            break
    if not objects:
        raise UserError(
            f"{path}: expected one JSON object a line; found none in its first lines. "
            f"It begins with {show(first)!r}."
        )
    return _without_unnamed(Source(path, "jsonl", dict.fromkeys(keys), split), tuple(keys))


def _sniff_csv(path: str, split: str | None) -> Source:
    number, line = next(physical_lines(path), (1, ""))
    line = line.rstrip("\r\n")
    fields = line.split("\t")
    if len(fields) == len(ONESUG_COLUMNS) and _is_number(fields[-1]) and _is_number(fields[-2]):
        return Source(path, "onesug", dict.fromkeys(ONESUG_COLUMNS), split, "\t")
    if not is_utf8(line) or "\0" in line:
        raise UserError(
            f"{path}: expected a header line in UTF-8; found {show(line)!r}. Save it as UTF-8 "
            "(for example with iconv -f LATIN1 -t UTF-8)."
        )
    delimiter = max(",\t;|", key=line.count)
    try:
        names = [
            name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])
        ]
    except csv.Error as error:
        raise UserError(f"{path}, line {number}: the header is not CSV: {error}.") from None
    named = [name for name in names if not unnamed(name)]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if repeated or not named:
        found = f"{repeated[0]!r} more than once" if repeated else "no name"
        raise UserError(
            f"{path}, line {number}: expected a header line naming each column once; found {found}."
        )
    source = Source(path, "csv", dict.fromkeys(names), split, delimiter, header=tuple(names))
    return _without_unnamed(source, tuple(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
