"""The table of scored requests: one row each, with the truth, its rank in each list, the lists.

A hit is an exact match after `logs.schema.normalise_query`; a list that holds a text twice is
refused, since it would waste places and could be rewarded for it.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from onesug_jax.evaluate import metrics
from onesug_jax.logs import schema
from onesug_jax.tasks.features import Request

# Of each request a list, best first, of texts or of what has a `text` and a `score`.
Suggester = Callable[[list[Request]], Sequence[Sequence[Any]]]

ORDERS = "_order"  # rank_NAME_order stands in for rank_NAME where a request ended in an order
_RECENT = 5  # earlier queries of a request that its row shows


def rows_schema(suggesters: Iterable[str], *, replayed: bool = False) -> pa.Schema:
    """The columns of the table of rows; `replayed`: with those that `replay` adds."""
    fields = [
        ("row", pa.int64()),
        ("request_id", pa.string()),
        ("prefix", pa.string()),
        ("truth", pa.string()),
    ]
    fields += [("level", pa.string()), ("prefix_count", pa.int64()), ("history", pa.int32())]
    fields += [("recent", pa.list_(pa.string()))]
    if replayed:
        fields += [("timestamp_ms", pa.int64()), ("new", pa.bool_())]
    for name in suggesters:
        fields += [(f"rank_{name}", pa.int32()), (f"list_{name}", pa.list_(pa.string()))]
        fields += [(f"scores_{name}", pa.list_(pa.float32()))]
        fields += [(f"written_{name}", pa.list_(pa.bool_()))]
    return pa.schema(fields)


def suggesters_of(table: pa.Table) -> list[str]:
    """Names of the suggesters of a table of rows, in its order."""
    names = [name[5:] for name in table.column_names if name.startswith("rank_")]
    return [one for one in names if not (one.endswith(ORDERS) and one[: -len(ORDERS)] in names)]


def ranks_of(table: pa.Table, name: str, *, orders: bool = False) -> np.ndarray:
    """Ranks int32 [N] of a suggester; `orders`: as they count among rows that ended in an order."""
    column = f"rank_{name}{ORDERS}"
    there = orders and column in table.column_names
    return table[column if there else f"rank_{name}"].to_numpy()


def columns_of(
    numbers: Sequence[int],
    rows: Sequence[dict],
    histories: Sequence[Sequence[str]],
    prefix_counts: Mapping[str, int],
    visible: Callable[[str], bool],
) -> dict[str, list]:
    """The columns that do not depend on suggesters, of rows of a split and their places in it."""
    levels = [
        schema.request_level(row["clicked_items"] or (), row["ordered_items"] or ()) for row in rows
    ]
    return {
        "row": list(numbers),
        "request_id": [row["request_id"] for row in rows],
        "prefix": [row["prefix"] for row in rows],
        "truth": [row["query"] for row in rows],
        "level": [level.name.lower() for level in levels],
        "prefix_count": [prefix_counts.get(row["prefix"], 0) for row in rows],
        "history": [len(history) for history in histories],
        "recent": [list(itertools.islice(filter(visible, past), _RECENT)) for past in histories],
    }


def score_block(
    columns: dict[str, list],
    rows: list[dict],
    requests: list[Request],
    suggesters: Mapping[str, Suggester],
    k: int,
) -> pa.RecordBatch:
    """Asks every suggester about a few requests.

    Args:
      columns: what does not depend on suggesters, as `rows_schema` names it; lists are added.
      rows: the requests' rows, with `request_id`, `prefix` and `query`.
      requests: the same as suggesters take them.
      suggesters, k: as `score_rows`.

    Raises:
      ValueError: as `score_rows`.
    """
    truths = [schema.normalise_query(row["query"]) for row in rows]
    for name, suggest in suggesters.items():
        given = suggest(requests)
        lists = _checked(name, given, rows, k)
        columns[f"scores_{name}"] = [_scores_of(suggestions[:k]) for suggestions in given]
        columns[f"written_{name}"] = [_written(suggestions[:k]) for suggestions in given]
        columns[f"rank_{name}"] = [
            metrics.rank_of(truth, compared)
            for truth, (_, compared) in zip(truths, lists, strict=True)
        ]
        columns[f"list_{name}"] = [texts for texts, _ in lists]
    table_schema = rows_schema(suggesters, replayed="new" in columns)
    return pa.record_batch([columns[name] for name in table_schema.names], schema=table_schema)


def _checked(
    name: str, lists: Sequence[Sequence[Any]], rows: list[dict], k: int
) -> list[tuple[list[str], list[str]]]:
    """Each list cut to k, as given and as compared (normalised)."""
    if len(lists) != len(rows):
        raise ValueError(f"suggester {name!r} gave {len(lists)} lists for {len(rows)} requests")
    checked = []
    for row, texts in zip(rows, lists, strict=True):
        texts = [getattr(given, "text", given) for given in texts[:k]]
        compared = [schema.normalise_query(text) for text in texts]
        if len(set(compared)) != len(compared):
            twice = next(text for text, n in collections.Counter(compared).items() if n > 1)
            raise ValueError(
                f"suggester {name!r} gave {twice!r} more than once for request {row['request_id']} "
                f"(prefix {row['prefix']!r})"
            )
        checked.append((texts, compared))
    return checked


def _written(suggestions: Sequence[Any]) -> list[bool] | None:
    """Which of a list the model wrote itself; None where that is not recorded."""
    if any(hasattr(suggestion, "written") for suggestion in suggestions):
        return [bool(getattr(suggestion, "written", False)) for suggestion in suggestions]
    return None


def _scores_of(suggestions: Sequence[Any]) -> list[float] | None:
    """The scores of one list; None where it is of texts alone."""
    if all(hasattr(suggestion, "score") for suggestion in suggestions):
        return [suggestion.score for suggestion in suggestions]
    return None
