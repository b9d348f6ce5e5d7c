"""Why a list is as it is: the counts, ages and likenesses that the model read, in plain numbers.

Nothing here changes a list. All of it is computed from the items of the request, when a client
wants to know.
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

_NOW_DAYS = 17 / 24  # the half-life that "now" is read at
_TIMES = 2.0  # how far above its all-time share a trending query's share is at least
_SURPRISE = 3.0  # and above what chance explains, in standard deviations
_LEAST_SEARCHES = 2.0


def explain(version: ModelVersion, asked: SuggestRequest, answer: Answer) -> dict:
    """What a list was made from, as `bodies.Why`."""
    result = answer.result
    ids = result.ids or [None] * len(result.related)
    minutes = [*asked.minutes, *[None] * (len(asked.history) - len(asked.minutes))]
    found: dict[str, Any] = {
        "history": [
            {"text": text, "minutes": None if age is None else round(age, 1)}
            for text, age in zip(asked.history, minutes, strict=True)
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
        found |= _why_items(version, asked, result)
    return found


def _why_items(version: ItemVersion, asked: SuggestRequest, result: SuggestResult) -> dict:
    """What a model that reads items read; of a list without a model, what it would have read."""
    live = version.live
    items = result.items
    if items is None:
        (items,) = live.requests([(asked.prefix, asked.history, asked.minutes)])
    numbers = [live.number(text) for text in result.texts]
    near = alike(items, version.tables.vectors, numbers)
    counted = counts(items, live.config, numbers)
    marks = result.written or (False,) * len(numbers)
    used = {live.text(int(number) - 1) for number in items.history if number}
    history = zip(asked.history, [*asked.minutes, *[0.0] * len(asked.history)], strict=False)
    return {
        "history": [
            {"text": text, "minutes": round(age, 1)} for text, age in history if text in used
        ],
        "unknown": [text for text in asked.history if text not in used],
        "candidates": int((items.candidates > 0).sum()),
        "counts": [
            {
                "text": text,
                "written": written,
                "counts": own,
                "alike": None if past < 0 else {"text": live.text(past), "cosine": cosine},
            }
            for text, written, own, (past, cosine) in zip(
                result.texts, marks, counted, near, strict=True
            )
        ],
        "trending": trending(items, live.config, live.text),
    }


def counts(items: Items, config: AsOfConfig, numbers: Sequence[int]) -> list[dict | None]:
    """The as-of counts of queries that are candidates, by column; None of those that are not."""
    places = {row - 1: place for place, row in enumerate(items.candidates.tolist()) if row}
    there = [places[number] for number in numbers if number in places]
    found = iter(_plain(items.candidate_counts[there]).tolist())
    return [
        dict(zip(config.columns, map(_short, next(found)), strict=True))
        if number in places
        else None
        for number in numbers
    ]


def alike(items: Items, vectors: np.ndarray, numbers: Sequence[int]) -> list[tuple[int, float]]:
    """The query of the history that is most alike to each query, and their cosine; (-1, 0) where
    there is no history, or a query has no number (-1).

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
    """Candidates that are searched far more now than they usually are, the most surprising first.

    A query's share of the searches now (half-life 17 h) is compared with its share of all searches
    so far, both among the request's candidates; it trends where it is searched at least twice as
    often as its usual share predicts, and more often than chance explains. Nothing trends where
    either is not counted.
    """
    half_lives = config.half_lives_days
    decayed = [n for n, days in enumerate(half_lives) if days is not None]
    there = items.candidates > 0
    if None not in half_lives or not decayed or not there.any():
        return []
    near = min(decayed, key=lambda n: abs(np.log((half_lives[n] or 0.0) / _NOW_DAYS)))
    columns = items.candidate_counts[:, [near, half_lives.index(None)]]
    now, ever = _plain(columns[there]).astype(np.float64).T
    numbers = items.candidates[there] - 1
    usual = now.sum() * ever / max(ever.sum(), LEAST)
    surprise = (now - usual) / np.sqrt(np.maximum(usual, 0.1))
    chosen = (now >= _LEAST_SEARCHES) & (now >= _TIMES * usual) & (surprise >= _SURPRISE)
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


def _plain(logs: np.ndarray) -> np.ndarray:
    """The decayed counts themselves."""
    found = np.exp(logs)
    return np.where(found <= 2 * LEAST, 0.0, found)


def _short(number: float) -> float:
    return round(number, 3)
