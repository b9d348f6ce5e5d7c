"""A seeded shop with time in it: people with tastes search, see a stale list, click and buy.

With it the quickstart, the tests and loads of any size run without private data. Its signals are
designed, and are those that the paper relies on: people
return to their searches, shelves and words (history); gender and age tilt taste (profile); clicks
follow popularity while orders follow the query's commercial intent and the user's taste (behaviour
levels); typing errors and long prefixes make rare ones. Popularity moves: queries appear, have
their bursts, drift, and follow hours and weekdays. It does not model any real shop, and figures on
it say nothing about real users.

    world      queries, words, shelves        timeline  the hidden popularity of every hour
    people     who comes, and when            searches  what they search, and its exact chance
    prefixes   what stands in the box         outcomes  the shown list, clicks, items, orders
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

    The last days are test, those before them dev. Same arguments, same bytes.

    Args:
      out: folder, made if need be.
      requests: rows in all.
      users: people who may come; one for 18 requests if None.
      queries: a text file (or .gz), one query a line, instead of the built-in catalogue.
      language: of the built-in catalogue, "en" or "zh".
      distinct: how many queries the shop has; grows with the root of `requests` if None.
      days: how long the log runs.
      dev_days: days held back as dev.
      test_days: days held back as test.
      behaviour: how people act.
      timeline: how popularity moves.
      ceiling: whether to write the best possible lists of dev and test, `out`/_ceiling.parquet.
      seed: of everything random.
      check_only: check sizes and queries, and write nothing.

    Raises:
      UserError: sizes that make no log, or a file of queries that cannot be used.
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
