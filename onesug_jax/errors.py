"""The exception for mistakes that a user can fix: `main` prints its message without a traceback."""

from __future__ import annotations

import errno
import os
from typing import Any


class UserError(Exception):
    """A mistake in a file, row, column or flag.

    The message names the place, what was expected, what was found, and the way out.

    Examples:
      >>> from onesug_jax import BeamConfig, UserError
      >>> try:
      ...     BeamConfig(beams=4, returned=16)
      ... except UserError as error:
      ...     print(str(error)[:24])
      BeamConfig.returned = 16
    """

    def _render_traceback_(self) -> list[str]:
        """The output in a notebook: the message alone, as `main` prints it."""
        return [f"error: {plain(self)}"]


def plain(error: UserError) -> str:
    """The message without gin's note about the called configurable, which does not help a user."""
    return str(error).split("\n  In call to configurable")[0]


_WAYS_OUT = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        "This user may not do that there: change the permissions (chmod, chown) or the path",
    ),
    errno.ENOENT: "It is not there (any more): check the path, or put the file back",
    errno.ENOSPC: "The disk is full: free some space, or name a folder on another disk",
    errno.EDQUOT: "The disk quota is used up: free some space, or name a folder on another disk",
    errno.EROFS: "That file system is read-only: name a folder elsewhere",
    errno.ENOTDIR: "A part of the path is a file, not a folder: name another path",
    errno.EISDIR: "That is a folder, not a file: name another path",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "Too many files are open on this machine: close other programs",
    errno.EFBIG: "The file is larger than is allowed here: raise the limit (ulimit -f)",
    errno.EEXIST: "Something of that name is in the way: move it, or name another path",
    errno.ELOOP: "Links there lead to each other: name the path that they should lead to",
    errno.ENAMETOOLONG: "The name is too long: use a shorter path",
}

# Errors of the system for files whose content may be sound.
_REFUSALS = _WAYS_OUT.keys() - {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def file_error(place: str, doing: str, error: OSError) -> UserError:
    """The error for an operation that the system refused.

    Args:
      place: a path; the path in `error`, if there is one, is named instead.
      doing: the operation: "reading it", "writing there".
    """
    error = _original(error)
    path = place if error.filename is None else os.fsdecode(error.filename)
    said = error.strerror or str(error) or type(error).__name__
    way_out = _WAYS_OUT.get(error.errno or 0, "Check the disk and the path")
    return UserError(f"{path}: {doing} failed: {said.splitlines()[0][:300]}. {way_out}.")


def refusal(place: str, doing: str, error: Exception) -> UserError | None:
    """`file_error` if the system refused something (no permission, too many open files, a full
    disk), else None. `error` is an OSError, or a library's error that quotes the system's message.
    """
    error = _original(error)
    number = getattr(error, "errno", None)
    code = next((c for c in _REFUSALS if c == number or os.strerror(c) in str(error)), None)
    if code is None:
        return None
    said = getattr(error, "strerror", None) or str(error) or os.strerror(code)
    return file_error(place, doing, OSError(code, said, getattr(error, "filename", None)))


def check_refused(path: str | os.PathLike[str], error: Exception) -> None:
    """For a file that could not be read: called before the file is reported as damaged.

    Raises:
      UserError: the system refused to read it.
    """
    refused = refusal(os.fspath(path), "reading it", error)
    if refused is not None:
        raise refused from None


def _original(error: Any) -> Any:
    """The OSError that gin replaced by one without errno and path; any other error itself."""
    while isinstance(error, OSError) and error.errno is None and error.__context__:
        error = error.__context__
    return error
