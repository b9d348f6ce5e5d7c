"""Writing the small files of a run, on a disk or in a bucket: replaced as a whole, or growing."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from onesug_jax.errors import UserError
from onesug_jax.train.digests import is_remote


def replace_content(path: epath.Path, content: bytes) -> None:
    """Write a file in one move: a kill leaves the old file or the new one."""
    if is_remote(path):  # a bucket shows an object once all of it is there
        path.write_bytes(content)
        return
    swap = path.with_name(path.name + ".tmp")
    swap.write_bytes(content)
    swap.replace(path)


class Sink:
    """A file that grows: appended to on a disk, written anew in a bucket, which cannot append."""

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._content = bytearray(content)
        replace_content(path, content)
        self._file = None if is_remote(path) else open(path, "ab")

    def write(self, data: bytes) -> None:
        """Add `data` at the end."""
        if self._file is None:
            self._content += data
        else:
            self._file.write(data)

    def flush(self) -> None:
        """Everything written so far is in the file afterwards."""
        if self._file is None:
            self._path.write_bytes(bytes(self._content))
        else:
            self._file.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Inside, a file of `folder` that cannot be written is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{os.fspath(folder)}: the reports could not be written: {error}. Make room or repair "
            "the folder, then give the same command again; checkpoints are complete."
        ) from error
