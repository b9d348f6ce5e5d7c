"""Rivals of the model that need no network: what a shop has before it has one.

A baseline answers as the model does: `suggest(requests, k)` gives lists of texts, best first.
"""

from __future__ import annotations

from collections.abc import Sequence

from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.tasks.features import Request


class MostPopular:
    """Most popular completion: the train split's queries that start with the prefix.

    Looks at the prefix alone, never at history or profile; a prefix no known query starts with gets
    no list.
    """

    name = "most_popular"

    def __init__(self, index: CompletionIndex):
        self.index = index

    @classmethod
    def from_log(cls, train_parquet: str) -> MostPopular:
        """Count the queries of a train split; UserError as `CompletionIndex.from_log`."""
        return cls(CompletionIndex.from_log(train_parquet))

    def suggest(self, requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        """Up to k queries for each request, best first, ties in alphabetical order."""
        return [self.index.complete(request.prefix, k) for request in requests]
