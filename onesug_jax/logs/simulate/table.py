"""The files of the simulated shop: rows in the schema, split by time, and the ceiling."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError
from onesug_jax.logs import schema
from onesug_jax.logs.simulate.oracle import Best
from onesug_jax.logs.simulate.people import AGES, DAY_MS, GENDERS, START_MS, People, Visits
from onesug_jax.logs.simulate.world import World

# The underscore excludes it from the files of the log.
CEILING = "_ceiling.parquet"

_SHELF_ITEMS = 60


def split_bounds(days: int, dev_days: int, test_days: int) -> list[int]:
    """First day of train, dev and test, and the number of days."""
    return [0, days - dev_days - test_days, days - test_days, days]


def log_table(
    rng, world: World, people: People, visits: Visits, searched: np.ndarray, prefixes: list[str],
    shown: tuple[np.ndarray, np.ndarray], place: np.ndarray, bought: tuple[np.ndarray, np.ndarray],
) -> pa.Table:  # fmt: skip
    """All rows in the schema plus `gender` and `age`, in the order of `visits`.

    Args:
      shown: queries of all lists and offsets [R + 1]. place: [R] the clicked place; -1: none.
      bought: numbers of clicked and of ordered items, [R] each.
    """
    texts, (listed, offsets) = pa.array(world.queries), shown
    clicked, ordered = _item_lists(rng, world, searched, *bought)
    user_names = pa.array([f"u{n:06d}" for n in range(len(people.gender))])
    visit_names = pa.array([f"s{n:07d}" for n in range(int(visits.visit[-1]) + 1)])
    lists = pa.ListArray.from_arrays(offsets.astype(np.int32), texts.take(pa.array(listed)))
    columns = {
        "request_id": _request_ids(by_time(visits)),
        "user_id": user_names.take(pa.array(visits.user)),
        "session_id": visit_names.take(pa.array(visits.visit)),
        "timestamp_ms": pa.array(visits.time),
        "prefix": pa.array(prefixes),
        "shown": lists,
        "query": texts.take(pa.array(searched)),
        "clicked_position": pa.array(place, mask=place < 0),
        "clicked_items": clicked,
        "ordered_items": ordered,
        "gender": pa.array(GENDERS).take(pa.array(people.gender[visits.user])),
        "age": pa.array(AGES).take(pa.array(people.age[visits.user])),
    }
    fields = [*schema.LOG_SCHEMA, pa.field("gender", pa.string()), pa.field("age", pa.string())]
    return pa.table(columns).select([field.name for field in fields]).cast(pa.schema(fields))


def by_time(visits: Visits) -> np.ndarray:
    """Rows in the order of the files: [R]."""
    return np.lexsort((np.arange(len(visits.time)), visits.time))


def _request_ids(order: np.ndarray) -> pa.Array:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return pa.array([f"r{n:08d}" for n in place.tolist()])


def write_splits(out: str, table: pa.Table, visits: Visits, bounds: list[int]) -> None:
    """Write `out`/train.parquet, dev.parquet and test.parquet, except splits of no days.

    Files of an earlier log in `out` are removed. Raises UserError for a split without rows.
    """
    os.makedirs(out, exist_ok=True)
    for name in (*(f"{split}.parquet" for split in schema.SPLITS), CEILING):
        if os.path.exists(os.path.join(out, name)):
            os.remove(os.path.join(out, name))
    order = by_time(visits)
    table, time = table.take(pa.array(order)), visits.time[order]
    for name, first, last in zip(schema.SPLITS, bounds, bounds[1:], strict=False):
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


def write_ceiling(out: str, world: World, visits: Visits, rows: np.ndarray, best: Best) -> None:
    """Write `out`/_ceiling.parquet: request_id, the best list, its probabilities, and the list for
    orders.
    """
    mask = best.queries >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(mask.sum(1))]), pa.int32())
    texts = pa.array(world.queries)
    columns = {
        "request_id": _request_ids(by_time(visits)).take(pa.array(rows)),
        "queries": texts.take(pa.array(best.queries[mask])),
        "chances": pa.array(best.chances[mask], pa.float32()),
        "for_orders": texts.take(pa.array(best.for_orders[best.for_orders >= 0])),
    }
    lists = {
        name: pa.ListArray.from_arrays(offsets, column) if name != "request_id" else column
        for name, column in columns.items()
    }
    pq.write_table(pa.table(lists).sort_by("request_id"), os.path.join(out, CEILING))


def _item_lists(rng, world, searched, many, ordered) -> tuple[pa.Array, pa.Array]:
    """Names of clicked and of ordered items; the ordered items are the first of the clicked."""
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
