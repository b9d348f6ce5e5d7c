"""Blocked terms: seconds to start and milliseconds per list, compared with a regular expression.

  python launch/bench.py --suite blocking

The automaton replaced this regular expression, an alternation of all terms, which does not handle
look-alike characters. Times are CPU time; for lists, the best of several.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence

from onesug_jax.decode.closed_set import Filter

_SYLLABLES = "ka lo mi tren ba gun pi sor de vu zan qui".split()
_LIST, _LISTS = 16, 20
_MOST_TERMS = 10_000  # with more terms, the expression takes minutes to start


def _expression(terms: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text contains a term, by one alternation."""
    ordered = sorted(terms, key=len, reverse=True)
    expression = re.compile("|".join(rf"(?<!\w){re.escape(term)}(?!\w)" for term in ordered))
    return lambda text: expression.search(text) is not None


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
    """Prints a row for each number of terms."""
    chance = random.Random(0)

    def word() -> str:
        return "".join(chance.choices(_SYLLABLES, k=chance.randint(4, 7)))

    print(f"lists of {_LIST} queries of two words; start, and the best of {_LISTS} lists")
    print(f"  {'terms':>8} {'automaton':>24} {'regular expression':>24}")
    for count in (100, 3_000, 100_000):
        terms: dict[str, None] = {}
        while len(terms) < count:
            terms[word()] = None
        lists = [[f"{word()} {word()}" for _ in range(_LIST)] for _ in range(_LISTS)]
        blocked = tuple(terms)
        automaton = _timed(lambda terms: Filter(terms).blocks, blocked, lists)
        expression = _timed(_expression, blocked, lists) if count <= _MOST_TERMS else "-"
        print(f"  {count:>8,} {automaton:>24} {expression:>24}")
