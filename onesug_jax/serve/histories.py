"""Reads histories from the feedback store with a time limit, and reports the store's health.

A store that is locked, damaged or missing delays one request by the limit. Later requests then get
an empty history without a delay, until the store works again.
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
_TIMEOUT = 0.5  # seconds that a request waits for the store
_PAUSE = 1.0  # seconds between attempts after a failure

Result = TypeVar("Result")


class _Health:
    """The result of the latest access of one kind; after a failure, accesses pause."""

    def __init__(self):
        self.state, self._retry_at = OK, 0.0

    async def attempt(self, access: Callable[[], Awaitable[Result]]) -> Result | None:
        """The result of an access; None if it failed or took too long, or during the pause."""
        if self.state != OK and time.monotonic() < self._retry_at:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT):
                result = await access()
        except TimeoutError:
            self.state = SLOW
        except (sqlite3.Error, Busy):
            self.state = DOWN
        else:
            self.state = OK
            return result
        self._retry_at = time.monotonic() + _PAUSE
        return None


class Histories:
    """Reads a store in its own threads; does not close the store."""

    def __init__(self, store: FeedbackStore):
        self._store, self._pool = store, ThreadPoolExecutor(4, "history")
        self._reading, self._writing = _Health(), _Health()

    async def of(self, user_id: str, most: int) -> dict[str, int]:
        """`FeedbackStore.history`; empty if the store is down or slow. Raises nothing."""
        history = await self._reading.attempt(lambda: self.read(self._store.history, user_id, most))
        return history or {}

    async def read(self, method: Callable[..., Result], *args: object) -> Result:
        """Calls a method of the store in a thread, without a time limit."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, method, *args)

    async def state(self) -> str:
        """The worse state of reading and writing: "ok", "slow" or "down"."""
        await self._reading.attempt(lambda: self.read(self._store.history, "?", 1))
        await self._writing.attempt(self._write_nothing)
        return max(self._reading.state, self._writing.state, key=(OK, SLOW, DOWN).index)

    async def _write_nothing(self) -> None:
        await asyncio.wrap_future(self._store.probe())

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
