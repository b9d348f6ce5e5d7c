"""Kinds of example: functions from one row of the log to encoder and decoder ids.

The paper's task and its variations (PAPER.md sections 1 and 2.4): to a query, to a semantic id, and
between the two. A task is a kind over a log (`tasks.examples`); a mixture has tasks with rates. A
new training signal is a function here and a name in `KINDS`. Numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onesug_jax.tasks.features import Featurizer, Request

Example = tuple[np.ndarray, np.ndarray]
# Of a request and its searched query; None: the row is left out.
Kind = Callable[[Featurizer, Request, str], Example | None]


def query(featurizer: Featurizer, request: Request, query: str) -> Example | None:
    """The paper's task: prefix, related queries, history, profile -> the query."""
    return featurizer.inputs(request), featurizer.target(query)


def query_from_history(featurizer: Featurizer, request: Request, query: str) -> Example | None:
    """Nothing typed yet: history and profile -> the query. Rows without a history are left out."""
    if not request.history:
        return None
    untyped = dataclasses.replace(request, prefix="", related=(), vector=None)
    return featurizer.inputs(untyped), featurizer.target(query)


def id_kinds(ids_of: Callable[[str], Sequence[int] | None]) -> dict[str, Kind]:
    """The kinds with semantic ids as inputs or targets (PAPER.md section 2.4).

    request_to_id: the paper's input -> the id of the query; query_to_id: a query -> its id;
    id_to_query: an id -> its query. Rows whose query has no id are left out.

    Args:
      ids_of: query -> its codes, or None for a query without an id.
    """

    def request_to_id(featurizer: Featurizer, request: Request, query: str) -> Example | None:
        codes = ids_of(query)
        return (featurizer.inputs(request), featurizer.id_tokens(codes)) if codes else None

    def query_to_id(featurizer: Featurizer, request: Request, query: str) -> Example | None:
        codes = ids_of(query)
        return (featurizer.text_input(query), featurizer.id_tokens(codes)) if codes else None

    def id_to_query(featurizer: Featurizer, request: Request, query: str) -> Example | None:
        codes = ids_of(query)
        return (featurizer.id_input(codes), featurizer.target(query)) if codes else None

    kinds = (request_to_id, query_to_id, id_to_query)
    return {kind.__name__: kind for kind in kinds}


ANY_PREFIX = "query_any_prefix"  # `query` from another beginning of the query; training rows only
KINDS: Mapping[str, Kind] = {
    "query": query,
    "query_from_history": query_from_history,
    ANY_PREFIX: query,
}
