"""Baselines that need no network.

A baseline answers as the model does: `suggest(requests, k)` gives lists of texts, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.tasks.features import Request


class MostPopular:
    """Most popular completion: the train split's queries that start with the prefix.

    Looks at the prefix alone, not at history or profile; a prefix that no indexed query starts with
    gets no list.
    """

    name = "most_popular"

    def __init__(self, index: CompletionIndex):
        self.index = index

    def suggest(self, requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        """Up to k queries for each request, best first, ties in alphabetical order."""
        return [self.index.complete(request.prefix, k) for request in requests]


class MostPopularNow:
    """The completions among the request's candidates in the order of one of their as-of counts; all
    candidates where none completes the prefix.

    Needs requests with `items`: those of a replay through time or of a service that counts.

    Args:
      text_of: query number -> text.
      column: of `Items.candidate_counts`.
    """

    def __init__(self, text_of: Callable[[int], str], column: int):
        self._text_of, self._column = text_of, column

    def suggest(self, requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        """Up to k queries for each request, best first, ties in the order of the candidates."""
        return [self._one(request, k) for request in requests]

    def _one(self, request: Request, k: int) -> list[str]:
        assert request.items is not None, "asked for what needs as-of counts"
        candidates = request.items.candidates
        counts = request.items.candidate_counts[: np.count_nonzero(candidates), self._column]
        order = np.argsort(-counts, kind="stable")
        ranked = [self._text_of(number - 1) for number in candidates[order].tolist()]
        completions = [text for text in ranked if text.startswith(request.prefix)]
        return (completions or ranked)[:k]


NOW = "most_popular_now"
_DECAYED = "searches_"  # as `AsOfConfig.columns` begins the names of counts of searches


def as_of(text_of: Callable[[int], str], config: AsOfConfig) -> dict[str, MostPopularNow]:
    """Rivals by name: `most_popular_now`, counted without decay, and one a half-life
    ("searches_3d").
    """
    return {
        NOW if config.half_lives_days[column] is None else config.columns[column]: MostPopularNow(
            text_of, column
        )
        for column in range(len(config.half_lives_days))
    }


def half_life(name: str) -> str:
    """The half-life of a rival of `as_of` in words, such as "17 h" or "3 d"; "": it has none."""
    if not (name.startswith(_DECAYED) and name.endswith("d")):
        return ""
    days = float(name.removeprefix(_DECAYED)[:-1])
    return f"{24 * days:.3g} h" if days < 1 else f"{days:.3g} d"


def best_decayed(
    metrics: Mapping[str, Mapping[str, Mapping[str, float | int | None]]], metric: str = "mrr@16"
) -> str | None:
    """The rival of `as_of` that decays and has the highest metric over all rows; None: there is
    none. It is chosen on the rows that it is reported on, which favours it over a model.
    """
    there = [name for name in metrics if half_life(name)]
    return max(there, key=lambda name: metrics[name]["all"][metric] or 0.0, default=None)
