"""The local folders of URLs, and tables of their files, including files that were not pulled yet.

A URL has one local folder, in the user's cache or below `ONESUG_MIRROR` (a data disk); a path below
the URL is the same path below that folder. A folder from a bucket has a table of its files: name,
size and fingerprint. So the inputs of a stage can be compared before they are downloaded. Local
paths stay unchanged. `mirror.py` does the transfers.
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
from onesug_jax.files import atomic_write, is_remote

MIRROR = "ONESUG_MIRROR"
TABLE = ".remote.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """The files of one finished or unfinished result in a bucket.

    Attributes:
      generation: an id of the result; its objects lie below `UNIT/GENERATION/`.
      files: name below the folder -> (bytes, fingerprint).
      url: the URL of the objects; only local tables have it.
    """

    generation: str
    files: dict[str, tuple[int, str]]
    url: str = ""

    @classmethod
    def parse(cls, content: bytes, where: str) -> Table:
        """The table in an object or a local file; `where` names it in the message.

        Raises:
          UserError: another release wrote it, or it is damaged.
        """
        try:
            fields = json.loads(content)
            if fields.pop("format") != FORMAT:
                raise ValueError("another release of onesug_jax wrote it")
            files = {name: (size, digest) for name, (size, digest) in fields["files"].items()}
            return cls(**{**fields, "files": files})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{where}: expected the files of a result, format {FORMAT}; found something else "
                f"({error}). Use the release that made this work directory, or another WORK_DIR."
            ) from None

    def text(self) -> bytes:
        """The JSON that `parse` reads."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}).encode()


def root(kind: str = "work") -> str:
    """The parent folder of the local folders of URLs."""
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
    """The path to show to a user: the URL of a path in a mirror."""
    inside = os.path.relpath(path, root())
    scheme, _, rest = inside.partition(os.sep)
    slash = "/" if scheme == "file" else ""  # a file's path begins at the root
    return path if inside.startswith("..") or not rest else f"{scheme}://{slash}{rest}"


def local_log(log: str) -> str:
    """The absolute local path, folder or glob of a log, or of a log in a bucket."""
    if not is_remote(log):
        return local(log)
    base, rest = split_log(log)
    return os.path.join(log_folder(log), rest)


def split_log(log: str) -> tuple[str, str]:
    """The URL of the folder of a log's files, and the log relative to it."""
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
    """The table of a folder, if it has one."""
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
    """Writes the table into its folder."""
    with atomic_write(os.path.join(folder, TABLE)) as file:
        file.write(table.text())


def holding(path: str) -> tuple[str, Table] | None:
    """The finished folder with a table that contains a path (or glob), and the table; None if there
    is none, as for all paths outside the mirrors.
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
    """The files of a bucket, pulled or not, that match an absolute path or glob."""
    unit = holding(pattern)
    if unit is None:
        return []
    folder, table = unit
    names = matching(table, os.path.relpath(pattern, folder))
    return [os.path.join(folder, name) for name in names]


def matching(table: Table, pattern: str) -> list[str]:
    """The names that match a path or glob relative to the table's folder, or lie below a match,
    without hidden ones.
    """
    wanted = [part for part in pattern.split("/") if part not in ("", ".")]
    return [name for name in table.files if _matches(name.split("/"), wanted)]


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if len(parts) < len(wanted) or any(part.startswith(".") for part in parts):
        return False
    return all(fnmatch.fnmatchcase(*pair) for pair in zip(parts, wanted, strict=False))


def entry(path: str) -> tuple[int, str] | None:
    """(bytes, fingerprint) of a file in a bucket; None: no table contains it."""
    unit = holding(path)
    return unit[1].files.get(os.path.relpath(path, unit[0])) if unit else None
