"""Atomic writes of files and folders, and fingerprints of their content.

Every layer writes through this file. A local file is written under a hidden name beside its target,
flushed to the disk, and renamed; a reader sees the old content or the new one. Folders are replaced
by a finished sibling. There are no locks here: the callers let one process at a time write a path.
`pipeline/mirror.py` writes to buckets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from onesug_jax.errors import UserError, file_error

if TYPE_CHECKING:
    import pyarrow.parquet as pq

PathLike = str | os.PathLike[str]

_MIB = 2**20
_READ_FULLY = 256 * _MIB  # bytes; the fingerprint of a larger file covers only blocks of it
_BLOCKS = 64  # of 1 MiB each
_NEXT, _REPLACED = ".next", ".replaced"  # a folder's successor and predecessor, as siblings
_NEWER = ".newer"  # marks the newer one of two folders while one takes the place of the other
_HERE, _RENAME_EXCHANGE = -100, 2  # Linux: AT_FDCWD, and the flag of renameat2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

# ---------------------------------------------------------------------------------- one file


def is_remote(path: PathLike) -> bool:
    """Whether `path` is a URL of a bucket."""
    return "://" in os.fspath(path)


def mode_of(path: PathLike) -> int:
    """The `st_mode` of a path; 0 if nothing exists there.

    Raises:
      UserError: the system refuses to look: no permission, a loop of links, too long a name.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0
    except OSError as error:
        raise file_error(os.fspath(path), "looking there", error) from None


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[str]:
    """A temporary path for writers that need one; its file becomes `path` when the context ends.

    The temporary file is hidden and ends in the name of `path`, so that its extension is the same.
    Missing folders are created. After an error `path` is unchanged and the temporary file is
    removed; only a killed process leaves one behind (`.new-*`).
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    new = os.path.join(folder, f".new-{secrets.token_hex(4)}-{name}")
    try:
        with open(new, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield new
        if os.stat(new).st_mode != mode:
            os.chmod(new, mode)  # some writers (safetensors) let only the owner read
        _flush(new)
        os.replace(new, path)
        _flush(folder)
    except BaseException as error:
        pathlib.Path(new).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, new):
            error.filename = path  # errors of write and flush name no path
        raise


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file to write; it becomes `path` when the context ends, see `atomic_path`."""
    with atomic_path(path) as new, open(new, "wb") as file:
        yield file


def write_json(
    path: PathLike,
    content: Any,
    *,
    indent: int = 2,
    ensure_ascii: bool = True,
    allow_nan: bool = True,
) -> None:
    """Write `content` as JSON with a line end, by `atomic_write`.

    Raises:
      ValueError, TypeError: JSON cannot hold it; the file is then unchanged.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=ensure_ascii, allow_nan=allow_nan)
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())


def read_json(path: PathLike, what: str, way_out: str) -> Any:
    """The value in a JSON file.

    Args:
      what: the content in words, for the message: "the metrics of an evaluation".
      way_out: the advice if it cannot be read: "run evaluate first".

    Raises:
      UserError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file; {way_out}") from None
    except ValueError as error:
        raise UserError(
            f"{path}: expected {what} as JSON, found a damaged file ({error}); {way_out}"
        ) from error


def read_object(path: PathLike, what: str, way_out: str) -> dict[str, Any]:
    """The JSON object in a file; arguments and errors as of `read_json`."""
    value = read_json(path, what, way_out)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; {way_out}")
    return value


def require_files(paths: Iterable[PathLike], what: str, way_out: str) -> None:
    """Raise UserError for the first of `paths` that is not a file; arguments as in `read_json`."""
    for path in paths:
        if not stat.S_ISREG(mode_of(path)):
            raise UserError(f"{path}: expected {what}, found no such file; {way_out}")


# ---------------------------------------------------------------------------------- folders


@contextlib.contextmanager
def atomic_files(folder: PathLike, last: str, replaced: Sequence[str] = ()) -> Iterator[str]:
    """A hidden folder to fill; its files move into `folder` when the context ends without error.

    Other files of `folder` stay. `last` names the file that readers look for: it is removed first
    and moved last. `replaced` names further old files to remove.
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        yield new
        for name in (last, *replaced):
            pathlib.Path(folder, name).unlink(missing_ok=True)
        for name in sorted(os.listdir(new), key=lambda name: name == last):
            _flush(os.path.join(new, name))
            os.replace(os.path.join(new, name), os.path.join(folder, name))
        _flush(folder)


def replace_folder(new: PathLike, old: PathLike) -> None:
    """Replace the folder `old` by the finished folder `new`.

    Both have the same parent folder. Linux exchanges them in one step, so that a reader always
    finds one of them. If the kernel or the file system cannot, `old` is missing between two
    renames. After a kill `recover_folder(old)` completes the replacement; if `new` was not renamed
    to `old`.next yet, the caller repeats this call.

    Raises:
      FileNotFoundError: there is no folder `new`.
    """
    new, old = os.path.abspath(new), os.path.abspath(old)
    recover_folder(old)
    pathlib.Path(new, _NEWER).touch()
    for parent, _, names in os.walk(new):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            _flush(path)
    os.rename(new, old + _NEXT)
    recover_folder(old)


def recover_folder(folder: PathLike) -> None:
    """Complete a `replace_folder` that was killed, if any; only the newer folder remains."""
    folder = os.path.abspath(folder)
    successor, replaced = folder + _NEXT, folder + _REPLACED
    if os.path.exists(os.path.join(successor, _NEWER)):
        if not os.path.exists(folder):
            os.rename(successor, folder)
        elif not _exchange(successor, folder):
            os.rename(folder, replaced)
            os.rename(successor, folder)
    if os.path.exists(successor):  # after an exchange this is the old folder
        os.rename(successor, replaced)
    if os.path.exists(replaced):
        if os.path.exists(folder):
            shutil.rmtree(replaced)
        else:  # somebody removed the successor
            os.rename(replaced, folder)
    mark = pathlib.Path(folder, _NEWER)
    if mark.exists():
        _flush(os.path.dirname(folder))
        mark.unlink()


def open_parquet(path: PathLike) -> pq.ParquetFile:
    """A Parquet file for reading as a stream, in the memory of a few row groups.

    By default, pyarrow keeps the compressed bytes of all row groups until the reader ends.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False)


def names_below(folder: PathLike) -> Iterator[str]:
    """The files below a folder, without hidden ones, as paths relative to it.

    Raises:
      UserError: the system refuses to list it.
    """

    def refuse(error: OSError) -> None:
        raise file_error(os.fspath(folder), "listing the folder", error)

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)


def link_file(source: PathLike, target: PathLike) -> None:
    """A hard link to a file; on another device a copy of it."""
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: PathLike, target: PathLike) -> None:
    """A copy of a folder whose files are hard links; on another device they are copies.

    `target` does not exist yet. The files must never be written in place.
    """
    shutil.copytree(source, target, copy_function=link_file)


# ---------------------------------------------------------------------------------- fingerprints


def fingerprint(*parts: Any) -> str:
    """16 hex digits of SHA-256 over `parts`: bytes, numpy or jax arrays, or values JSON can hold.

    Order, types, dtypes and shapes matter; tuples equal lists, and the order of keys does not
    matter.

    Raises:
      TypeError: a part is none of these.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, (bytes, bytearray, memoryview)):
            kind, data = "bytes", memoryview(part)
        elif hasattr(part, "__array__"):
            kind, data = _array_bytes(part)
        else:
            kind, data = "json", memoryview(json.dumps(part, sort_keys=True).encode())
        digest.update(f"{kind} {data.nbytes}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def fingerprint_file(path: PathLike) -> str:
    """The fingerprint of a file's content; path and time do not matter.

    Above 256 MiB it covers the size and 64 evenly spaced blocks of 1 MiB, both ends included.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        starts = list(range(0, size, _MIB))
        if size > _READ_FULLY:
            starts = [(size - _MIB) * i // (_BLOCKS - 1) for i in range(_BLOCKS)]
        digest = hashlib.sha256(f"{size}\n".encode())
        for start in starts:
            file.seek(start)
            digest.update(file.read(_MIB))
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------- helpers


def _flush(path: str) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some network file systems have no such call
            raise
    finally:
        os.close(handle)


def _exchange(one: str, other: str) -> bool:
    """Exchange two paths in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), one, None, other)


def _array_bytes(array: Any) -> tuple[str, memoryview]:
    import numpy as np

    array = np.asarray(array)
    kind = f"{array.dtype.name} {array.dtype.str} {list(array.shape)}"
    return kind, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
