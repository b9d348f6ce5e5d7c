"""Where the files of a URL lie on this machine, and which files there are though they were not
pulled yet.

A URL has one local folder, below a folder of the user's cache that `ONESUG_MIRROR` moves (to a data
disk); a path below the URL is the same path below that folder. A folder that came from a bucket
holds a table of its files: name, size and fingerprint. So what a stage would read can be compared
without its files. Local paths are left as they are. No network here: `mirror.py` pulls and pushes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import hashlib
import json
import os

from onesug_jax.errors import UserError
from onesug_jax.files import is_remote, write_json

MIRROR = "ONESUG_MIRROR"
TABLE = ".remote.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """The files of one finished or begun result of a bucket.

    Attributes:
      generation: what is new with each result; its objects lie below `UNIT/GENERATION/`.
      files: name below the folder -> (bytes, fingerprint).
      url: where these objects lie; local tables alone have it.
    """

    generation: str
    files: dict[str, tuple[int, str]]
    url: str = ""

    @classmethod
    def parse(cls, content: bytes, where: str) -> Table:
        """Of an object or a local file.

        Raises:
          UserError: another release wrote it, or it is damaged.
        """
        try:
            found = json.loads(content)
            if found.pop("format") != FORMAT:
                raise ValueError("another release of onesug_jax wrote it")
            files = {name: (size, digest) for name, (size, digest) in found["files"].items()}
            return cls(**{**found, "files": files})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{where}: expected the files of a result, format {FORMAT}; found something else "
                f"({error}). Use the release that made this work directory, or another WORK_DIR."
            ) from None

    def text(self) -> bytes:
        """As `parse` reads it."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}).encode()


def root(kind: str = "work") -> str:
    """The folder below which URLs have their local folders."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get(MIRROR) or os.path.join(cache, "onesug_jax")
    return os.path.join(os.path.abspath(os.path.expanduser(folder)), kind)


def local(path: str) -> str:
    """The absolute local path of a path, or of a URL in a bucket.

    Raises:
      UserError: a URL without a bucket, or with `..` in it.
    """
    path = os.fspath(path)
    if not is_remote(path):
        return os.path.abspath(os.path.expanduser(path))
    scheme, _, rest = path.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not scheme or not parts or ".." in parts:
        raise UserError(f"{path!r}: expected SCHEME://BUCKET/PATH, found another kind of URL.")
    return os.path.join(root(), scheme, *parts)


def shown(path: str) -> str:
    """What a user calls a local path: of one in a mirror the URL."""
    inside = os.path.relpath(path, root())
    scheme, _, rest = inside.partition(os.sep)
    return path if inside.startswith("..") or not rest else f"{scheme}://{_slash(scheme)}{rest}"


def _slash(scheme: str) -> str:
    return "/" if scheme == "file" else ""  # a file's path begins at the root


def local_log(log: str) -> str:
    """The absolute local path, folder or glob of a log, or of a log in a bucket."""
    if not is_remote(log):
        return local(log)
    base, rest = split_log(log)
    return os.path.join(log_folder(log), rest)


def split_log(log: str) -> tuple[str, str]:
    """The URL of the folder that a log's files lie in, and the log relative to it."""
    scheme, _, rest = log.rstrip("/").partition("://")
    parts = rest.split("/")
    count = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    count = max(1, count)  # the bucket
    return f"{scheme}://{'/'.join(parts[:count])}", "/".join(parts[count:])


def log_folder(log: str) -> str:
    """The local folder of a log in a bucket."""
    name = hashlib.sha256(log.rstrip("/").encode()).hexdigest()[:16]
    return os.path.join(root("logs"), name)


def read(folder: str) -> Table | None:
    """The table of a folder; None: it has none."""
    path = os.path.join(folder, TABLE)
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return _parsed(path, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=64)
def _parsed(path: str, *version: int) -> Table:
    with open(path, "rb") as file:
        return Table.parse(file.read(), path)


def write(folder: str, table: Table) -> None:
    """Leaves the table in its folder."""
    write_json(
        os.path.join(folder, TABLE),
        {"format": FORMAT, **dataclasses.asdict(table)},
        ensure_ascii=False,
    )


def holding(path: str) -> tuple[str, Table] | None:
    """The finished folder with a table that a path (or glob) lies in, and the table; None: there is
    none, as always outside the mirrors.
    """
    base = os.path.dirname(root())
    if not path.startswith(base + os.sep):
        return None
    while glob.has_magic(path[len(base) :]):
        path = os.path.dirname(path)
    while len(path) > len(base):
        table = read(path)
        if table is not None:
            return None if path.endswith(".new") else (path, table)
        path = os.path.dirname(path)
    return None


def below(pattern: str) -> list[str]:
    """The files of a bucket, pulled or not, that an absolute path or glob means."""
    found = holding(pattern)
    if found is None:
        return []
    folder, table = found
    names = matching(table, os.path.relpath(pattern, folder))
    return [os.path.join(folder, name) for name in names]


def matching(table: Table, pattern: str) -> list[str]:
    """Names that a path or glob relative to the table's folder means, with all below a match;
    hidden ones never.
    """
    wanted = [part for part in pattern.split("/") if part not in ("", ".")]
    return [name for name in table.files if _matches(name.split("/"), wanted)]


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if len(parts) < len(wanted) or any(part.startswith(".") for part in parts):
        return False
    return all(fnmatch.fnmatchcase(*pair) for pair in zip(parts, wanted, strict=False))


def entry(path: str) -> tuple[int, str] | None:
    """(bytes, fingerprint) of a file that the bucket holds; None: no table knows it."""
    found = holding(path)
    return found[1].files.get(os.path.relpath(path, found[0])) if found else None
