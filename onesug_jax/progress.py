"""The progress timer: the number of finished items, their rate, and the time left.

    with Progress("examples", total=50_000, unit="rows") as progress:
        progress.add(1000)  # examples: 12,000 of 50,000 rows, 2,300/s, 17 s left

`train.report` prints training steps. Only the primary process prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from onesug_jax.train.distributed import is_primary

T = TypeVar("T")


class Progress:
    """Prints a line every 10 s, on a terminal every second in place, and a last one with the time.

    Args:
      name: the text in front of each line.
      total: the number of items; None: unknown.
      unit: the name of the items, in the plural.
      quiet: print nothing.
      clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self._clock, self._quiet = clock, quiet or not is_primary()
        self._in_place = sys.stdout.isatty()
        self._every = 1.0 if self._in_place else 10.0
        self._began = self._printed = self._stepped = clock()
        self._width = 0  # of the line on the terminal

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        elif self._width:
            print(flush=True)  # the message that follows gets a line of its own

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; counts an item when the next one is requested. Closes at the end."""
        with self:
            for item in items:
                yield item
                self.add()

    def add(self, count: int = 1, note: str = "") -> None:
        """Count `count` more items; print a line, ending in `note`, if one is due."""
        self.done += count
        now = self._clock()
        if now - self._printed < self._every:
            return
        self._printed = now
        rate = self.done / (now - self._began)
        line = f"{self.done:,}"
        line += f" of {self.total:,}" if self.total is not None else ""
        line += f" {self.unit}, {_number(rate)}/s"
        if self.total is not None and rate and self.done < self.total:
            line += f", {_duration((self.total - self.done) / rate)} left"
        self._print(f"{line}, {note}" if note else line, in_place=self._in_place)

    def step(self, what: str) -> None:
        """Print that step `what` is done, with the seconds since the last step and in total."""
        now = self._clock()
        since, self._stepped = now - self._stepped, now
        self._print(f"{what} ({since:.1f} s, {now - self._began:.1f} s in all)")

    def close(self) -> None:
        """Print the last line: number of items, time and rate."""
        seconds = self._clock() - self._began
        rate = self.done / max(seconds, 1e-9)
        self._print(f"{self.done:,} {self.unit} in {seconds:.1f} s, {_number(rate)}/s")

    def _print(self, text: str, *, in_place: bool = False) -> None:
        if self._quiet:
            return
        text = f"{self.name}: {text}"
        padded = text.ljust(self._width)  # covers the old line
        self._width = len(text) if in_place else 0
        print(padded, end="\r" if in_place else "\n", flush=True)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _duration(seconds: float) -> str:
    """A time as text, to the second, or above an hour to the minute."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
