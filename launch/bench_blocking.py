"""Blocked terms: seconds to start, and milliseconds a list of 16, beside one regular expression.

  python launch/bench.py --suite blocking

The regular expression is what one automaton replaced: one alternation of all terms. It has no
look-alikes. CPU time is counted, of a list the best of several.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence

from onesug_jax.decode.closed_set import Filter

_SYLLABLES = "ka lo mi tren ba gun pi sor de vu zan qui".split()
_LIST, _LISTS = 16, 20
_PATIENT = 10_000  # more terms than these and the expression takes minutes to start


def _expression(terms: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text holds a term, by one alternation."""
    ordered = sorted(terms, key=len, reverse=True)
    found = re.compile("|".join(rf"(?<!\w){re.escape(term)}(?!\w)" for term in ordered))
    return lambda text: found.search(text) is not None


def _timed(
    make: Callable[[tuple[str, ...]], Callable[[str], bool]],
    terms: tuple[str, ...],
    lists: list[list[str]],
) -> str:
    re.purge()
    began = time.process_time()
    blocks = make(terms)
    start = time.process_time() - began
    spent = []
    for texts in lists:
        began = time.process_time()
        for text in texts:
            blocks(text)
        spent.append(time.process_time() - began)
    return f"{start:>9.3f} s {1000 * min(spent):>9.3f} ms"


def blocking() -> None:
    """Prints one row a number of terms."""
    chance = random.Random(0)

    def word() -> str:
        return "".join(chance.choices(_SYLLABLES, k=chance.randint(4, 7)))

    print(f"lists of {_LIST} queries of two words; start and a list, best of {_LISTS}")
    print(f"  {'terms':>8} {'automaton':>24} {'regular expression':>24}")
    for count in (100, 3_000, 100_000):
        terms: dict[str, None] = {}
        while len(terms) < count:
            terms[word()] = None
        lists = [[f"{word()} {word()}" for _ in range(_LIST)] for _ in range(_LISTS)]
        blocked = tuple(terms)
        found = _timed(lambda terms: Filter(terms).blocks, blocked, lists)
        before = "-"
        if count <= _PATIENT:
            before = _timed(_expression, blocked, lists)
        print(f"  {count:>8,} {found:>24} {before:>24}")
