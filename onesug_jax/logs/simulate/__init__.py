"""A simulated shop with a seed: people with tastes search, see an old list, click and buy.

It supplies logs of any size without private data. Its signals are designed, and are those that the
paper relies on. People return to their searches, shelves and words (history). Gender and age change
tastes (profile). Clicks follow popularity, while orders follow the query's commercial intent and
the user's taste (behaviour levels). Typing errors and long prefixes make rare prefixes. Popularity
changes: queries appear, have bursts, drift, and follow hours and weekdays. It models no real shop,
and results on it do not apply to real users.

    world      queries, words, shelves        timeline  the hidden popularity of every hour
    people     users and their visits         searches  their queries, with exact probabilities
    prefixes   the typed prefixes             outcomes  the shown list, clicks, items, orders
    oracle     the best possible lists        table     the files
"""

from __future__ import annotations

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.simulate import outcomes, table
from onesug_jax.logs.simulate.oracle import Oracle
from onesug_jax.logs.simulate.people import Behaviour, make_people, make_visits
from onesug_jax.logs.simulate.prefixes import draw_prefixes
from onesug_jax.logs.simulate.searches import make_searches
from onesug_jax.logs.simulate.timeline import HOURS, Timeline, make_popularity
from onesug_jax.logs.simulate.world import build_world


def simulate(
    out: str,
    *,
    requests: int = 60_000,
    users: int | None = None,
    queries: str | None = None,
    language: str = "en",
    distinct: int | None = None,
    days: int = 28,
    dev_days: int = 2,
    test_days: int = 0,
    behaviour: Behaviour | None = None,
    timeline: Timeline | None = None,
    ceiling: bool = True,
    seed: int = 0,
    check_only: bool = False,
) -> None:
    """Write `requests` rows to `out`/train.parquet and dev.parquet (test.parquet if `test_days`).

    The last days are test, the days before them dev. The same arguments give the same bytes.

    Args:
      out: folder, created if missing.
      requests: number of rows.
      users: number of people; None: one for 18 requests.
      queries: a text file (or .gz), one query a line, instead of the built-in catalogue.
      language: of the built-in catalogue, "en" or "zh".
      distinct: number of queries of the shop; None: proportional to the root of `requests`.
      days: length of the log.
      dev_days: days of the dev split.
      test_days: days of the test split.
      behaviour: the behaviour of people.
      timeline: the changes of popularity.
      ceiling: whether to write the best possible lists of dev and test, `out`/_ceiling.parquet.
      seed: of all random numbers.
      check_only: check sizes and queries, and write nothing.

    Raises:
      UserError: impossible sizes, or an unusable file of queries.
    """
    users = max(2, requests // 18) if users is None else users
    behaviour, timeline = behaviour or Behaviour(), timeline or Timeline()
    rng = np.random.default_rng(seed)
    distinct = max(50, int(20 * requests**0.5)) if distinct is None else distinct
    _check(
        requests=requests,
        users=users,
        days=days,
        distinct=distinct,
        dev_days=dev_days,
        test_days=test_days,
    )
    world = build_world(rng, queries=queries, language=language, distinct=distinct)
    if check_only:
        return
    people = make_people(rng, world, users)
    visits = make_visits(rng, users, requests, days, behaviour)
    popularity = make_popularity(rng, world, timeline, days)
    searched = make_searches(rng, world, people, visits, popularity, behaviour)
    prefixes = draw_prefixes(rng, world, searched, behaviour.typo_share)
    trade = outcomes.Trade.fit(world, people, visits.user, searched, behaviour)
    oracle = Oracle(popularity, trade, visits, behaviour)
    shown = outcomes.show(
        rng, popularity, oracle.alphabet, visits, searched, prefixes, behaviour.stale_days
    )
    place = outcomes.click(rng, searched, *shown, behaviour.noticed)
    bought = outcomes.buy(rng, trade, visits.user, searched)
    rows = table.log_table(rng, world, people, visits, searched, prefixes, shown, place, bought)
    bounds = table.split_bounds(days, dev_days, test_days)
    table.write_splits(out, rows, visits, bounds)
    if ceiling:
        held = np.flatnonzero(visits.hour >= bounds[1] * HOURS)
        best = oracle.best(held, [prefixes[row] for row in held], searched)
        table.write_ceiling(out, world, visits, held, best)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        least = 0 if name == "test_days" else 1
        if value < least:
            raise UserError(f"simulate {name}: expected at least {least}, found {value}")
    held = sizes["dev_days"] + sizes["test_days"]
    if held >= sizes["days"]:
        raise UserError(
            f"simulate days: expected more than the {held} held back by dev_days and test_days, "
            f"found {sizes['days']}"
        )
    if sizes["requests"] < sizes["users"]:
        raise UserError(
            f"simulate users: expected at most one for a request ({sizes['requests']}), found "
            f"{sizes['users']}"
        )
