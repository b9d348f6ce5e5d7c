"""A seeded shop: people with tastes type, see a stale list, search, click and buy; it writes a log.

It exists so that the whole road runs without anybody's data: the quickstart, the tests, loads of
any size. What a model can learn from it is put in on purpose, and is what the paper counts on:
people return to their searches, shelves and words (history); gender and age tilt taste (profile);
clicks follow popularity while orders follow the query's commercial intent and the user's taste
(behaviour levels); typing mistakes and long prefixes make rare ones. It is no model of any real
shop, and figures on it say nothing about real users.

The goods are in `world`, the people and what they search in `shoppers`; here they type, look and
buy, and the rows are written in the schema.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs import schema
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.shoppers import (
    AGES,
    DAY_MS,
    GENDERS,
    START_MS,
    Behaviour,
    People,
    Visits,
    make_people,
    make_searches,
    make_visits,
)
from onesug_jax.logs.world import World, build_world

_SHELF_ITEMS = 60


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
    seed: int = 0,
) -> None:
    """Write `requests` rows to `out`/train.parquet and dev.parquet (test.parquet if `test_days`).

    The last days are test, those before them dev. Same arguments, same bytes.

    Args:
      out: folder, made if need be.
      requests: rows in all.
      users: people who may come; one for 18 requests if None.
      queries: a text file (or .gz), one query a line, instead of the built-in catalogue.
      language: of the built-in catalogue, "en" or "zh".
      distinct: how many queries the shop knows; grows with the root of `requests` if None.
      days: how long the log runs.
      dev_days: days held back as dev.
      test_days: days held back as test.
      behaviour: how people act.
      seed: of everything random.

    Raises:
      UserError: sizes that make no log, or a file of queries that cannot be used.
    """
    users = max(2, requests // 18) if users is None else users
    _check(requests=requests, users=users, days=days, dev_days=dev_days, test_days=test_days)
    behaviour = behaviour or Behaviour()
    rng = np.random.default_rng(seed)
    distinct = max(50, int(20 * requests**0.5)) if distinct is None else distinct
    world = build_world(rng, queries=queries, language=language, distinct=distinct, days=days)
    people = make_people(rng, world, users)
    visits = make_visits(rng, users, requests, days, behaviour)
    searched = make_searches(rng, world, people, visits, behaviour)
    columns = _columns(rng, world, people, visits, searched, behaviour)
    _write(out, columns, visits.time, days, dev_days, test_days)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        least = 0 if name == "test_days" else 1
        if value < least:
            raise UserError(f"simulate {name}: expected at least {least}, found {value}")
    held = sizes["dev_days"] + sizes["test_days"]
    if held >= sizes["days"]:
        raise UserError(
            f"simulate days: expected more than the {held} kept back by dev_days and test_days, "
            f"found {sizes['days']}"
        )
    if sizes["requests"] < sizes["users"]:
        raise UserError(
            f"simulate users: expected at most one for a request ({sizes['requests']}), found "
            f"{sizes['users']}"
        )


def _typed(rng, world: World, searched: np.ndarray, typo_share: float) -> list[str]:
    """What stood in the box: the query's beginning, mostly short, at times two letters swapped."""
    size = world.characters[searched]
    mean = np.where(world.wide[searched], 0.9, 2.6)
    # Few letters mostly, and a long tail: one in eight goes on typing, perhaps to the end.
    length = 1 + np.floor(rng.gamma(1.2, mean / 1.2)).astype(np.int64)
    onward = rng.integers(1, size + 1)
    length = np.where(rng.random(len(size)) < 0.12, np.maximum(length, onward), length)
    length = np.minimum(length, size)
    texts = world.queries
    prefixes = [texts[q][:n] for q, n in zip(searched.tolist(), length.tolist(), strict=True)]
    for row in np.flatnonzero((rng.random(len(prefixes)) < typo_share * 1.4) & (length >= 2)):
        prefix = prefixes[row]
        at = int(rng.integers(0, len(prefix) - 1))
        a, b = prefix[at : at + 2]
        if a != b and not (a + b).count(" "):
            prefixes[row] = prefix[:at] + b + a + prefix[at + 2 :]
    return prefixes


def _shown(rng, world, visits, searched, prefixes, stale_days) -> tuple[np.ndarray, np.ndarray]:
    """Ten most searched completions by counts some days old: (queries [sum], offsets [R + 1]).

    Before the log began the shop had searches too: about four days' worth, by base popularity.
    """
    rows, days = len(searched), world.drift.shape[0]
    texts = world.queries
    by_text = np.array(sorted(range(len(texts)), key=texts.__getitem__))
    place = np.empty_like(by_text)
    place[by_text] = np.arange(len(texts))
    index = CompletionIndex.from_counts(texts, [1] * len(texts))
    names, number = np.unique(np.array(prefixes, dtype=object), return_inverse=True)
    spans = np.array([index.range(name) for name in names]).reshape(-1, 2)
    spans, span_of = np.unique(spans, axis=0, return_inverse=True)
    span_of = span_of.reshape(-1)[number]
    counts = rng.multinomial(max(4 * rows // days, 4 * len(texts)), world.popularity[by_text])
    offsets = np.zeros(rows + 1, np.int64)
    pieces: list[np.ndarray] = [np.zeros(0, np.int64)] * rows
    for day in range(days):
        if day >= stale_days:
            counts = counts + np.bincount(
                place[searched[visits.day == day - stale_days]], minlength=len(texts)
            )
        today = np.flatnonzero(visits.day == day)
        needed, where = np.unique(span_of[today], return_inverse=True)
        lists = [_ten_best(counts, *spans[span]) for span in needed]
        for row, at in zip(today.tolist(), where.tolist(), strict=True):
            pieces[row] = lists[at]
    offsets[1:] = np.cumsum([len(piece) for piece in pieces])
    return by_text[np.concatenate([*pieces, np.zeros(0, np.int64)])], offsets


def _ten_best(counts: np.ndarray, first: int, last: int) -> np.ndarray:
    part = counts[first:last]
    if len(part) > 64:
        near = np.argpartition(-part, 10)[:11]
        near = np.flatnonzero(part >= part[near].min())
        best = near[np.argsort(-part[near], kind="stable")[:10]]
    else:
        best = np.argsort(-part, kind="stable")[:10]
    return best[part[best] > 0] + first


def _clicked(rng, searched, shown, offsets, noticed) -> np.ndarray:
    """Place of the query in the list if the user saw and took it there, -1 if typed; [R]."""
    rows = len(searched)
    owner = np.repeat(np.arange(rows), np.diff(offsets))
    hit = np.flatnonzero(shown == searched[owner])
    place = np.full(rows, -1, np.int64)
    place[owner[hit]] = hit - offsets[owner[hit]]
    seen = rng.random(rows) < noticed * 0.85 ** np.maximum(place, 0)
    return np.where(seen, place, -1)


def _taste(world: World, people: People, visits: Visits, searched: np.ndarray) -> np.ndarray:
    """How much a row's query is to its user's taste, about 0 to 3; [R] float."""
    words = world.words_of[searched]
    favourite = people.words[visits.user]
    taste = np.zeros(len(searched))
    for column in range(words.shape[1]):
        taste += (favourite == words[:, column, None]).any(1)
    return taste + 0.7 * (people.shelves[visits.user, 0] == world.shelf[searched])


def _bought(rng, world, people, visits, searched, behaviour) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of clicked items (0 to 3) and of ordered ones among them; [R] each.

    Clicks follow the query's browsing appeal, orders its commercial intent and the user's taste:
    two different traits of a query, so that what sells is not what is searched most.
    """
    taste = _taste(world, people, visits, searched)
    rows = len(searched)
    appeal = world.appeal[searched] + 0.3 * taste
    clicks = rng.random(rows) < _with_mean(appeal, behaviour.item_clicks)
    intent = world.intent[searched] + 0.8 * taste
    orders = clicks & (rng.random(rows) < _with_mean(intent, behaviour.orders))
    many = np.where(clicks, np.minimum(rng.geometric(0.6, rows), 3), 0)
    return many, np.where(orders, 1 + (rng.random(rows) < 0.08) * (many > 1), 0)


def _with_mean(score: np.ndarray, mean: float) -> np.ndarray:
    """Logistic of `score` shifted so that its mean over the rows is `mean`."""
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-score - middle))).mean() < mean:
            low = middle
        else:
            high = middle
    return 1 / (1 + np.exp(-score - low))


def _item_lists(rng, world, searched, many, ordered) -> tuple[pa.Array, pa.Array]:
    """Clicked and ordered item names; the ordered ones are the first of the clicked."""
    names = pa.array([f"c{c}i{i}" for c in range(world.shelves) for i in range(_SHELF_ITEMS)])
    first = searched * 7 + np.minimum(rng.geometric(0.4, len(searched)), 10)

    def lists(count: np.ndarray) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(count)])
        step = np.arange(offsets[-1]) - np.repeat(offsets[:-1], count)
        item = (np.repeat(first, count) + step) % _SHELF_ITEMS
        shelf = np.repeat(world.shelf[searched], count)
        return pa.ListArray.from_arrays(
            offsets.astype(np.int32), names.take(pa.array(shelf * _SHELF_ITEMS + item))
        )

    return lists(many), lists(ordered)


def _columns(rng, world, people, visits, searched, behaviour) -> pa.Table:
    """All rows as a table in the schema plus `gender` and `age`, in time order."""
    prefixes = _typed(rng, world, searched, behaviour.typo_share)
    shown, offsets = _shown(rng, world, visits, searched, prefixes, behaviour.stale_days)
    place = _clicked(rng, searched, shown, offsets, behaviour.noticed)
    clicked, ordered = _item_lists(
        rng, world, searched, *_bought(rng, world, people, visits, searched, behaviour)
    )
    texts, rows = pa.array(world.queries), len(searched)
    user_names = pa.array([f"u{n:06d}" for n in range(len(people.gender))])
    visit_names = pa.array([f"s{n:07d}" for n in range(int(visits.visit[-1]) + 1)])
    order = np.lexsort((np.arange(rows), visits.time))
    table = pa.table(
        {
            "user_id": user_names.take(pa.array(visits.user)),
            "session_id": visit_names.take(pa.array(visits.visit)),
            "timestamp_ms": pa.array(visits.time),
            "prefix": pa.array(prefixes),
            "shown": pa.ListArray.from_arrays(
                offsets.astype(np.int32), texts.take(pa.array(shown))
            ),
            "query": texts.take(pa.array(searched)),
            "clicked_position": pa.array(place, mask=place < 0),
            "clicked_items": clicked,
            "ordered_items": ordered,
            "gender": pa.array(GENDERS).take(pa.array(people.gender[visits.user])),
            "age": pa.array(AGES).take(pa.array(people.age[visits.user])),
        }
    ).take(pa.array(order))
    table = table.add_column(0, "request_id", pa.array([f"r{n:08d}" for n in range(rows)]))
    fields = [*schema.LOG_SCHEMA, pa.field("gender", pa.string()), pa.field("age", pa.string())]
    return table.select([field.name for field in fields]).cast(pa.schema(fields))


def _write(
    out: str, table: pa.Table, time: np.ndarray, days: int, dev_days: int, test_days: int
) -> None:
    os.makedirs(out, exist_ok=True)
    time = np.sort(time)
    bounds = [0, days - dev_days - test_days, days - test_days, days]
    for name, first, last in zip(("train", "dev", "test"), bounds, bounds[1:], strict=False):
        if first == last:
            continue
        low, high = np.searchsorted(time, [START_MS + day * DAY_MS for day in (first, last)])
        if low == high:
            raise UserError(
                f"simulate requests: expected enough for every split, found no row for {name}; "
                f"ask for more requests"
            )
        pq.write_table(
            table.slice(low, high - low),
            os.path.join(out, f"{name}.parquet"),
            row_group_size=65_536,
        )
