"""What lies in memory for long is left out of Python's garbage collections.

A collection stops every thread while it looks at all objects: with the queries, counts and
histories of a shop that is half a second and more, in which no request is answered or refused.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def long_lived() -> Iterator[None]:
    """Collects nothing inside, and never looks at what was made inside, nor at what was before."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
