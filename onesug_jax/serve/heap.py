"""Excludes long-lived objects from Python's garbage collections.

A collection stops every thread while it visits all objects. With the queries, counts and histories
of a shop this takes half a second or more, and no request is answered meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def long_lived() -> Iterator[None]:
    """Disables collections inside; afterwards they skip all objects that exist at the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
