"""Baselines that need no network.

A baseline answers as the model does: `suggest(requests, k)` gives lists of texts, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.tasks.features import Request

Rival = Callable[..., list[list[str]]]
POPULAR, NOW = "most_popular", "most_popular_now"
_DECAYED = "searches_"  # as `AsOfConfig.columns` begins the names of counts of searches


def most_popular(index: CompletionIndex) -> Rival:
    """Most popular completion: the train split's queries that start with the prefix, best first,
    ties in alphabetical order.

    Looks at the prefix alone, not at history or profile; a prefix that no indexed query starts with
    gets no list.
    """

    def suggest(requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        return [index.complete(request.prefix, k) for request in requests]

    return suggest


def most_counted(text_of: Callable[[int], str], column: int) -> Rival:
    """The completions among the request's candidates in the order of one of their as-of counts,
    ties in the order of the candidates; all candidates where none completes the prefix.

    Needs requests with `items`: those of a replay through time or of a service that counts.

    Args:
      text_of: query number -> text.
      column: of `Items.candidate_counts`.
    """

    def listed(request: Request, k: int) -> list[str]:
        assert request.items is not None, "asked for what needs as-of counts"
        candidates = request.items.candidates
        counts = request.items.candidate_counts[: np.count_nonzero(candidates), column]
        order = np.argsort(-counts, kind="stable")
        ranked = [text_of(number - 1) for number in candidates[order].tolist()]
        completions = [text for text in ranked if text.startswith(request.prefix)]
        return (completions or ranked)[:k]

    return lambda requests, k=16: [listed(request, k) for request in requests]


def as_of(text_of: Callable[[int], str], config: AsOfConfig) -> dict[str, Rival]:
    """Rivals by name: `most_popular_now`, counted without decay, and one a half-life
    ("searches_3d").
    """
    names = [
        NOW if days is None else name
        for days, name in zip(config.half_lives_days, config.columns, strict=False)
    ]
    return {name: most_counted(text_of, column) for column, name in enumerate(names)}


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
