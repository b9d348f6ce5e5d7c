"""Writing the small files of a run: replaced as a whole, or growing."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from onesug_jax.errors import UserError


def replace_content(path: epath.Path, content: bytes) -> None:
    """Write a file in one move: a kill leaves the old file or the new one."""
    swap = path.with_name(path.name + ".tmp")
    swap.write_bytes(content)
    swap.replace(path)


def growing(path: epath.Path, content: bytes = b"") -> BinaryIO:
    """A file of this content, to append to."""
    replace_content(path, content)
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
