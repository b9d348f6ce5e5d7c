"""One writer in a folder: an advisory lock, which the system releases when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import IO, Any

from onesug_jax.errors import UserError

FILE = ".lock"


class WriterLock:
    """Holds `folder` for writing while the context lasts; readers ignore it.

    The lock file names the holder. Entering again in the same process is allowed and does nothing.

    Raises:
      UserError: on entering, at once, when another process holds the folder: its host, process and
        start time.
    """

    _held: dict[str, int] = {}  # folder -> number of open contexts in this process

    def __init__(self, folder: str, command: str = ""):
        self.folder, self.command = os.path.realpath(folder), command
        self._file: IO[str] | None = None

    def __enter__(self) -> WriterLock:
        if self._held.get(self.folder):
            self._held[self.folder] += 1
            return self
        os.makedirs(self.folder, exist_ok=True)
        file = open(os.path.join(self.folder, FILE), "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = in_words(read(file.read()))
            file.close()
            raise held(self.folder, holder) from None
        file.seek(0)
        file.truncate()
        json.dump(about(self.command), file)
        file.flush()
        self._file, self._held[self.folder] = file, 1
        return self

    def __exit__(self, *raised: object) -> None:
        self._held[self.folder] -= 1
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def holder(folder: str) -> str | None:
    """The current writer of `folder` as text; None: nobody writes. Changes nothing."""
    path = os.path.join(os.path.realpath(folder), FILE)
    if WriterLock._held.get(os.path.dirname(path)) or not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return in_words(read(file.read()))
    return None


def about(command: str) -> dict[str, Any]:
    """This process as the content of a lock."""
    started = time.strftime("%Y-%m-%d %H:%M:%S%z")
    host = socket.gethostname()
    return {"command": command, "host": host, "process": os.getpid(), "started": started}


def in_words(writer: Mapping[str, Any]) -> str:
    """A writer's `about` as text."""
    try:
        return "{command} on host {host}, process {process}, started {started}".format(**writer)
    except KeyError:
        return "a process that has not said its name yet"


def read(text: str | bytes) -> dict[str, Any]:
    """A writer's `about` from the content of a lock; {} if it cannot be read."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def held(place: str, holder: str) -> UserError:
    """The error when another command writes in `place`."""
    return UserError(
        f"{place} is being written by another command: {holder}. Wait for it, stop it, or choose "
        "another --gin.WORK_DIR."
    )
