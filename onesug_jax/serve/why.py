"""The explanation of a list: the counts, ages and similarities that the model read.

It is computed from the items of the request, when a client requests it. It changes no list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.items import LEAST, Items
from onesug_jax.serve.item_version import ItemVersion
from onesug_jax.serve.requests import Answer, SuggestRequest, SuggestResult
from onesug_jax.serve.version import ModelVersion

_NOW_DAYS = 17 / 24  # the half-life of "now"
# Minimums for a trending query: its share divided by its all-time share, its excess in standard
# deviations, and its searches now.
_LEAST_RATIO = 2.0
_LEAST_SURPRISE = 3.0
_LEAST_SEARCHES = 2.0


def explain(version: ModelVersion, request: SuggestRequest, answer: Answer) -> dict:
    """The inputs of a list, as `replies.Why`."""
    result = answer.result
    ids = result.ids or [None] * len(result.related)
    minutes = [*request.minutes, *[None] * (len(request.history) - len(request.minutes))]
    why: dict[str, Any] = {
        "history": [
            {"text": text, "minutes": None if age is None else round(age, 1)}
            for text, age in zip(request.history, minutes, strict=True)
        ],
        "unknown": [],
        "candidates": None,
        "counts": [],
        "trending": [],
        "related": [
            {"text": text, "id": None if one is None else list(one)}
            for text, one in zip(result.related, ids, strict=True)
        ],
        "batch": answer.batch,
        "waited_ms": round(1000 * answer.waited, 2),
        "model_ms": round(1000 * answer.took, 2),
    }
    if isinstance(version, ItemVersion):
        why |= _why_items(version, request, result)
    return why


def _why_items(version: ItemVersion, request: SuggestRequest, result: SuggestResult) -> dict:
    """The inputs of a model that reads items; for a list without a model, computed now."""
    live = version.live
    items = result.items
    if items is None:
        (items,) = live.requests([(request.prefix, request.history, request.minutes)])
    numbers = [live.number(text) for text in result.texts]
    nearest = most_similar(items, version.tables.vectors, numbers)
    counts = counts_by_column(items, live.config, numbers)
    written = result.written or (False,) * len(numbers)
    used = {live.text(int(number) - 1) for number in items.history if number}
    history = zip(request.history, [*request.minutes, *[0.0] * len(request.history)], strict=False)
    return {
        "history": [
            {"text": text, "minutes": round(age, 1)} for text, age in history if text in used
        ],
        "unknown": [text for text in request.history if text not in used],
        "candidates": int((items.candidates > 0).sum()),
        "counts": [
            {
                "text": text,
                "written": is_written,
                "counts": own,
                "alike": None if past < 0 else {"text": live.text(past), "cosine": cosine},
            }
            for text, is_written, own, (past, cosine) in zip(
                result.texts, written, counts, nearest, strict=True
            )
        ],
        "trending": trending(items, live.config, live.text),
    }


def counts_by_column(items: Items, config: AsOfConfig, numbers: Sequence[int]) -> list[dict | None]:
    """The as-of counts of queries by column; None for a query that is no candidate."""
    places = {row - 1: place for place, row in enumerate(items.candidates.tolist()) if row}
    counts = _exp(items.candidate_counts).tolist()
    return [
        dict(zip(config.columns, map(_short, counts[places[number]]), strict=True))
        if number in places
        else None
        for number in numbers
    ]


def most_similar(
    items: Items, vectors: np.ndarray, numbers: Sequence[int]
) -> list[tuple[int, float]]:
    """For each query, the most similar query of the history and their cosine; (-1, 0) without a
    history, or for a query without a number (-1).

    Args:
      vectors: `[1 + N, E]`, unit vectors by number + 1.
    """
    rows = items.history[items.history > 0]
    if not len(rows) or not len(numbers):
        return [(-1, 0.0)] * len(numbers)
    cosines = vectors[np.asarray(numbers) + 1] @ vectors[rows].T
    best = cosines.argmax(axis=1)
    return [
        (int(rows[place]) - 1, _short(float(row[place]))) if number >= 0 else (-1, 0.0)
        for number, place, row in zip(numbers, best, cosines, strict=True)
    ]


def trending(
    items: Items, config: AsOfConfig, text_of: Callable[[int], str], most: int = 5
) -> list[dict]:
    """Candidates that are searched far more now than usual, the most surprising first.

    A query's share of the searches now (half-life 17 h) is compared with its share of all searches
    so far, both among the request's candidates. It trends if it is searched at least twice as often
    as its usual share predicts, and more often than chance explains. The result is empty if the
    configuration lacks one of the two counts.
    """
    half_lives = config.half_lives_days
    decayed = [n for n, days in enumerate(half_lives) if days is not None]
    mask = items.candidates > 0
    if None not in half_lives or not decayed or not mask.any():
        return []
    near = min(decayed, key=lambda n: abs(np.log((half_lives[n] or 0.0) / _NOW_DAYS)))
    columns = items.candidate_counts[:, [near, half_lives.index(None)]]
    now, ever = _exp(columns[mask]).astype(np.float64).T
    numbers = items.candidates[mask] - 1
    usual = now.sum() * ever / max(ever.sum(), LEAST)
    surprise = (now - usual) / np.sqrt(np.maximum(usual, 0.1))
    enough = np.maximum(_LEAST_SEARCHES, _LEAST_RATIO * usual)
    chosen = (now >= enough) & (surprise >= _LEAST_SURPRISE)
    order = [n for n in np.argsort(-surprise, kind="stable").tolist() if chosen[n]][:most]
    return [
        {
            "text": text_of(int(numbers[n])),
            "now": _short(float(now[n])),
            "usual": _short(float(usual[n])),
            "all": _short(float(ever[n])),
        }
        for n in order
    ]


def _exp(logs: np.ndarray) -> np.ndarray:
    """The decayed counts of their logarithms; the smallest are 0."""
    counts = np.exp(logs)
    return np.where(counts <= 2 * LEAST, 0.0, counts)


def _short(number: float) -> float:
    return round(number, 3)
