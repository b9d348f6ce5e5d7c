"""Writing the small files of a run, which grow."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write


def growing(path: str, content: bytes = b"") -> BinaryIO:
    """A file of this content, to append to."""
    with atomic_write(path) as file:
        file.write(content)
    return open(path, "ab")


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
