"""Kinds of example: what one row of the log teaches, as plain functions of the row.

The paper's task and its variations (PAPER.md sections 1 and 2.4): queries, semantic ids, the way
from one to the other. A task is a kind over a log (`tasks.examples`), a mixture weighs tasks. A new
training signal is a function here and a name in `KINDS`. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onesug_jax.tasks.features import Featurizer, Request

Example = tuple[np.ndarray, np.ndarray]
_PRESENT = np.zeros(0)  # stands for a vector: whether there is one is all that the ids show


class Row(NamedTuple):
    """One request and the query it ended in; lists newest or best first.

    `soft` is the number of the enhanced prefix in the table of vectors, 0: none.
    """

    prefix: str
    query: str
    recent: list[str]
    related: list[str]
    profile: list[str]
    soft: int = 0


Kind = Callable[[Featurizer, Row], Example | None]


def _request(row: Row) -> Request:
    vector = _PRESENT if row.soft else None
    return Request(row.prefix, row.recent, row.related, row.profile, vector)


def query(featurizer: Featurizer, row: Row) -> Example | None:
    """The paper's task: prefix, related queries, history, profile -> the query."""
    return featurizer.inputs(_request(row)), featurizer.target(row.query)


def query_from_history(featurizer: Featurizer, row: Row) -> Example | None:
    """Nothing typed yet: history and profile -> the query. Rows without a history are left out."""
    if not row.recent:
        return None
    request = _request(row._replace(prefix="", related=[], soft=0))
    return featurizer.inputs(request), featurizer.target(row.query)


def id_kinds(ids_of: Callable[[str], Sequence[int] | None]) -> dict[str, Kind]:
    """The kinds that write or read semantic ids (PAPER.md section 2.4).

    request_to_id: the paper's input -> the id of the query; query_to_id: a query -> its id;
    id_to_query: the way back. Rows whose query has no id are left out.

    Args:
      ids_of: query -> its codes, or None for a query without an id.
    """

    def request_to_id(featurizer: Featurizer, row: Row) -> Example | None:
        codes = ids_of(row.query)
        if codes is None:
            return None
        return featurizer.inputs(_request(row)), featurizer.id_tokens(codes)

    def query_to_id(featurizer: Featurizer, row: Row) -> Example | None:
        codes = ids_of(row.query)
        if codes is None:
            return None
        return featurizer.text_input(row.query), featurizer.id_tokens(codes)

    def id_to_query(featurizer: Featurizer, row: Row) -> Example | None:
        codes = ids_of(row.query)
        if codes is None:
            return None
        return featurizer.id_input(codes), featurizer.target(row.query)

    kinds = (request_to_id, query_to_id, id_to_query)
    return {kind.__name__: kind for kind in kinds}


ANY_PREFIX = "query_any_prefix"  # `query`, from another beginning of it: training rows only
KINDS: Mapping[str, Kind] = {
    "query": query,
    "query_from_history": query_from_history,
    ANY_PREFIX: query,
}
