"""Files that are written whole or not at all, and asked for by name.

Any layer may use it; it knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from onesug_jax.errors import UserError


@contextlib.contextmanager
def whole(path: str) -> Iterator[BinaryIO]:
    """A file to write bytes to; it takes the place of `path` when the context ends without error.

    Until then it is `path`.new, which an error leaves behind.
    """
    with open(path + ".new", "wb") as file:
        yield file
    os.replace(path + ".new", path)


def write_json(path: str, content: Any, *, indent: int = 2, ensure_ascii: bool = True) -> None:
    """Write `content` as JSON with a line end, whole or not at all.

    Raises:
      ValueError, TypeError: JSON cannot hold it; the file is then as it was.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=ensure_ascii)
    with whole(path) as file:
        file.write(f"{text}\n".encode())


def need(paths: Iterable[str], what: str, mend: str) -> None:
    """Raise UserError for the first of `paths` that is no file.

    Args:
      paths: of files.
      what: "a saved quantiser", of which they are.
      mend: "train it again", which makes them.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path}: expected {what}, found no such file; {mend}")
