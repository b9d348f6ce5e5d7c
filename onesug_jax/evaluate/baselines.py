"""Baselines without a neural network.

A baseline has the model's interface: `suggest(requests, k)` gives lists of texts, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.tasks.features import Request

Rival = Callable[..., list[list[str]]]
POPULAR, NOW = "most_popular", "most_popular_now"
_DECAYED = "searches_"  # the prefix of search counts in `AsOfConfig.columns`


def most_popular(index: CompletionIndex) -> Rival:
    """Most popular completion: the train split's queries that start with the prefix, best first,
    ties in alphabetical order; an empty list if there are none.
    """

    def suggest(requests: Sequence[Request], k: int = 16) -> list[list[str]]:
        return [index.complete(request.prefix, k) for request in requests]

    return suggest


def most_counted(text_of: Callable[[int], str], column: int) -> Rival:
    """The request's candidates that start with the prefix, or all if there are none, ranked by an
    as-of count; ties in the order of the candidates.

    Needs requests with `items`, from a replay through time or a service with live counts.

    Args:
      text_of: query number -> text.
      column: of `Items.candidate_counts`.
    """

    def suggest_one(request: Request, k: int) -> list[str]:
        assert request.items is not None, "as-of counts need Request.items"
        candidates = request.items.candidates
        counts = request.items.candidate_counts[: np.count_nonzero(candidates), column]
        order = np.argsort(-counts, kind="stable")
        ranked = [text_of(number - 1) for number in candidates[order].tolist()]
        completions = [text for text in ranked if text.startswith(request.prefix)]
        return (completions or ranked)[:k]

    return lambda requests, k=16: [suggest_one(request, k) for request in requests]


def as_of(text_of: Callable[[int], str], config: AsOfConfig) -> dict[str, Rival]:
    """Rivals by name: `most_popular_now`, counted without decay, and one for each half-life
    ("searches_3d").
    """
    names = [
        NOW if days is None else name
        for days, name in zip(config.half_lives_days, config.columns, strict=False)
    ]
    return {name: most_counted(text_of, column) for column, name in enumerate(names)}


def half_life(name: str) -> str:
    """The half-life of a rival of `as_of` as text, such as "17 h" or "3 d"; "": it has none."""
    if not (name.startswith(_DECAYED) and name.endswith("d")):
        return ""
    days = float(name.removeprefix(_DECAYED)[:-1])
    return f"{24 * days:.3g} h" if days < 1 else f"{days:.3g} d"


def best_decayed(
    metrics: Mapping[str, Mapping[str, Mapping[str, float | int | None]]], metric: str = "mrr@16"
) -> str | None:
    """The rival of `as_of` with decay and the highest metric over all rows, or None. It is chosen
    on the rows that it is reported on, which favours it over a model.
    """
    decayed = [name for name in metrics if half_life(name)]
    return max(decayed, key=lambda name: metrics[name]["all"][metric] or 0.0, default=None)
