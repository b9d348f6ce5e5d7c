"""Histories out of the feedback store, for requests that must not wait for it; and how it is.

A store that is locked, damaged or gone costs a request a moment at most, and then nothing: its
history is empty until the store has been found well again. Suggestions are made all the same.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onesug_jax.serve.feedback import Busy, FeedbackStore

OK, SLOW, DOWN = "ok", "slow", "down"
_PATIENCE = 0.5  # seconds that a request waits for the store
_PAUSE = 1.0  # seconds until a store that failed is asked again

Found = TypeVar("Found")


class _Health:
    """How one kind of access went the last time; one that failed is left alone for a while."""

    def __init__(self):
        self.state, self._again = OK, 0.0

    async def tried(self, ask: Callable[[], Awaitable[Found]]) -> Found | None:
        """What comes of it; None: nothing in time, or it was not asked."""
        if self.state != OK and time.monotonic() < self._again:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await ask()
        except TimeoutError:
            self.state = SLOW
        except (sqlite3.Error, Busy):
            self.state = DOWN
        else:
            self.state = OK
            return found
        self._again = time.monotonic() + _PAUSE
        return None


class Histories:
    """Reads a store from threads of its own.

    Args:
      store: the events; whoever made it closes it.
    """

    def __init__(self, store: FeedbackStore):
        self._store, self._pool = store, ThreadPoolExecutor(4, "history")
        self._reading, self._writing = _Health(), _Health()

    async def of(self, user_id: str, most: int) -> dict[str, int]:
        """As `FeedbackStore.history`; none where the store is down or slow. Raises nothing."""
        found = await self._reading.tried(lambda: self.read(self._store.history, user_id, most))
        return found or {}

    async def read(self, ask: Callable[..., Found], *given: object) -> Found:
        """What a method of the store gives, however long it takes; raises what that raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, ask, *given)

    async def state(self) -> str:
        """How reading and writing go: "ok", "slow" or "down", the worse of them."""
        await self._reading.tried(lambda: self.read(self._store.history, "?", 1))
        await self._writing.tried(self._write_nothing)
        return max(self._reading.state, self._writing.state, key=(OK, SLOW, DOWN).index)

    async def _write_nothing(self) -> None:
        await asyncio.wrap_future(self._store.probe())

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
