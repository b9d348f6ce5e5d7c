"""The table of scored requests: one row each, with the truth, its rank in each list, the lists.

A hit is an exact match after `logs.schema.normalise_query`. A list with a repeated text is an
error.
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

# Requests -> their lists, best first, of texts or of objects with `text` and `score`.
Suggester = Callable[[list[Request]], Sequence[Sequence[Any]]]

ORDERS = "_order"  # rank_NAME_order replaces rank_NAME for requests with an order
_RECENT = 5  # number of earlier queries in a row


def rows_schema(suggesters: Iterable[str], *, replayed: bool = False) -> pa.Schema:
    """The schema of the table of rows; `replayed`: with the further columns of `replay`."""
    fields = [("row", pa.int64())]
    fields += [(name, pa.string()) for name in ("request_id", "prefix", "truth", "level")]
    fields += [("prefix_count", pa.int64()), ("history", pa.int32())]
    fields += [("recent", pa.list_(pa.string()))]
    if replayed:
        fields += [("timestamp_ms", pa.int64()), ("new", pa.bool_()), ("candidate", pa.bool_())]
    for name in suggesters:
        fields += [(f"rank_{name}", pa.int32()), (f"list_{name}", pa.list_(pa.string()))]
        fields += [(f"scores_{name}", pa.list_(pa.float32()))]
        fields += [(f"written_{name}", pa.list_(pa.bool_()))]
    return pa.schema(fields)


def suggesters_of(table: pa.Table) -> list[str]:
    """Names of the suggesters of a table of rows, in its order."""
    names = [name[5:] for name in table.column_names if name.startswith("rank_")]
    return [n for n in names if not (n.endswith(ORDERS) and n.removesuffix(ORDERS) in names)]


def ranks_of(table: pa.Table, name: str, *, orders: bool = False) -> np.ndarray:
    """Ranks int32 [N] of a suggester; `orders`: those that count for rows with an order."""
    column = f"rank_{name}{ORDERS}"
    present = orders and column in table.column_names
    return table[column if present else f"rank_{name}"].to_numpy()


def columns_of(
    numbers: Sequence[int],
    rows: Sequence[dict],
    histories: Sequence[Sequence[str]],
    prefix_counts: Mapping[str, int],
    visible: Callable[[str], bool],
) -> dict[str, list]:
    """The columns that do not depend on suggesters, of rows with their numbers in the split."""
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
    """Runs every suggester on a few requests.

    Args:
      columns: the output of `columns_of`, and those of `replay`; the suggesters' are added to it.
      rows: the requests' rows, with `request_id`, `prefix` and `query`.
      requests: the same rows as inputs of the suggesters.
      suggesters, k: as in `score_rows`.

    Raises:
      ValueError: as in `score_rows`.
    """
    truths = [schema.normalise_query(row["query"]) for row in rows]
    for name, suggest in suggesters.items():
        output = suggest(requests)
        lists = _checked(name, output, rows, k)
        columns[f"scores_{name}"] = [_scores_of(suggestions[:k]) for suggestions in output]
        columns[f"written_{name}"] = [_written(suggestions[:k]) for suggestions in output]
        columns[f"rank_{name}"] = [
            metrics.rank_of(truth, normalised)
            for truth, (_, normalised) in zip(truths, lists, strict=True)
        ]
        columns[f"list_{name}"] = [texts for texts, _ in lists]
    table_schema = rows_schema(suggesters, replayed="new" in columns)
    return pa.record_batch([columns[name] for name in table_schema.names], schema=table_schema)


def _checked(
    name: str, lists: Sequence[Sequence[Any]], rows: list[dict], k: int
) -> list[tuple[list[str], list[str]]]:
    """The texts of each list, truncated to k: original and normalised."""
    if len(lists) != len(rows):
        raise ValueError(f"suggester {name!r} gave {len(lists)} lists for {len(rows)} requests")
    checked = []
    for row, suggestions in zip(rows, lists, strict=True):
        texts = [getattr(suggestion, "text", suggestion) for suggestion in suggestions[:k]]
        normalised = [schema.normalise_query(text) for text in texts]
        if len(set(normalised)) != len(normalised):
            twice = next(text for text, n in collections.Counter(normalised).items() if n > 1)
            raise ValueError(
                f"suggester {name!r} gave {twice!r} more than once for request {row['request_id']} "
                f"(prefix {row['prefix']!r})"
            )
        checked.append((texts, normalised))
    return checked


def _written(suggestions: Sequence[Any]) -> list[bool] | None:
    """Whether the model wrote each suggestion of a list; None if that is not recorded."""
    if any(hasattr(suggestion, "written") for suggestion in suggestions):
        return [bool(getattr(suggestion, "written", False)) for suggestion in suggestions]
    return None


def _scores_of(suggestions: Sequence[Any]) -> list[float] | None:
    """The scores of one list; None for a list of texts."""
    if all(hasattr(suggestion, "score") for suggestion in suggestions):
        return [suggestion.score for suggestion in suggestions]
    return None
