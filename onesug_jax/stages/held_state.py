"""The exact as-of state before the first held-out row of a log, from which an evaluation starts.

`examples` stores it when its walk passes that moment. Otherwise each evaluation would first count
all rows of train. The file is a pickle, as the states of blocks are, and has histories; it is not
part of a bundle.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onesug_jax.files import atomic_write, fingerprint_file

if TYPE_CHECKING:
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.logs.asof.walk import Event
    from onesug_jax.logs.texts import Texts

FILE = "held_out.pickle"
# Settings of requests alone, which do not change what is counted.
_OF_REQUESTS = ("candidates", "similar", "around", "source", "few")
# A damaged file, or one of another release.
_UNREADABLE = (pickle.UnpicklingError, EOFError, ImportError, AttributeError, KeyError, TypeError)


def storing(
    events: Iterable[Event], state: AsOf, files: Sequence[str], path: str
) -> Iterator[Event]:
    """The events of a walk that updates `state`; before the first one that is not of the first
    file (train), the state is stored at `path`.
    """
    first, stored = [0] * len(files), False
    for event in events:
        if event.file and not stored:
            rows = {os.path.basename(file): row for file, row in zip(files, first, strict=True)}
            with atomic_write(path) as file:
                pickle.dump({**_identity(state, files), "first": rows}, file)
                _Pickler(file, state).dump(state)
            stored = True
        first[event.file] = event.row + 1
        yield event


def restore(state: AsOf, path: str, files: Sequence[str], split: str) -> list[int] | None:
    """Replace the state before the log by the stored one, if it is of the same queries, settings
    and files, and no row of the file `split` was observed.

    Returns:
      the first row of each file that the state has not observed; None if `state` is unchanged.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file:
            about = pickle.load(file)
            first = about.pop("first")
            if about != _identity(state, files) or first[os.path.basename(split)]:
                return None
            stored = _Unpickler(file, state).load()
    except _UNREADABLE:
        return None
    config, nearby = state.config, state.nearby
    state.become(stored)
    state.config, state.nearby = config, nearby
    return [first[os.path.basename(path)] for path in files]


def _identity(state: AsOf, files: Sequence[str]) -> dict[str, Any]:
    """The format, queries, settings and files that a stored state depends on."""
    from onesug_jax.logs.asof.config import DEFAULT
    from onesug_jax.logs.asof.snapshot import FORMAT

    texts = state.completions.initial
    config = dataclasses.replace(
        state.config, **{name: getattr(DEFAULT, name) for name in _OF_REQUESTS}
    )
    return {
        "format": FORMAT,
        "files": {os.path.basename(path): fingerprint_file(path) for path in files},
        "queries": (len(texts), zlib.crc32(texts.block.data)),
        "config": config,
    }


class _Pickler(pickle.Pickler):
    """Leaves the initial queries out, which are files of another stage."""

    def __init__(self, file: Any, state: AsOf):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._texts = state.completions.initial

    def persistent_id(self, value: Any) -> str | None:
        return "queries" if value is self._texts else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, state: AsOf):
        super().__init__(file)
        self._texts = state.completions.initial

    def persistent_load(self, name: str) -> Texts:
        return self._texts
