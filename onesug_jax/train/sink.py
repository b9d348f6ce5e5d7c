"""Writing of the small, growing files of a run."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write


def growing(path: str, content: bytes = b"") -> BinaryIO:
    """Replaces a file by this content, and opens it for appending."""
    with atomic_write(path) as file:
        file.write(content)
    return open(path, "ab")


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """An OSError inside becomes a UserError that names `folder`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{os.fspath(folder)}: the reports could not be written: {error}. Make room or repair "
            "the folder, then give the same command again; checkpoints are complete."
        ) from error
