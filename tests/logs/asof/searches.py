"""Random searches, for the tests of the as-of state."""

import itertools

import numpy as np

from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.logs.schema import Level

WORDS = sorted("".join(w) for n in (1, 2, 3) for w in itertools.product("abc", repeat=n))
START = 1_700_000_000_000


def random_log(seed, rows=150, words=WORDS):
    rng = np.random.default_rng(seed)
    times = START + np.sort(rng.integers(0, 3 * DAY_MS, rows))
    rate = rng.dirichlet(np.full(len(words), 0.2))
    log = []
    for time in times.tolist():
        query = words[rng.choice(len(words), p=rate)]
        prefix = query[: rng.integers(0, len(query) + 1)]
        level = Level(int(rng.choice([3, 3, 4, 5])))
        shown = tuple(rng.permutation(WORDS)[: rng.integers(0, 5)].tolist())
        log.append((time, f"u{rng.integers(0, 6)}", prefix, query, level, shown))
    return log
