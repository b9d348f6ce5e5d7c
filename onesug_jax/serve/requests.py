"""Requests, answers and errors of the engine, independent of HTTP and of the kind of model."""

from __future__ import annotations

from dataclasses import dataclass, field

from onesug_jax.logs.asof.items import Items


@dataclass(frozen=True)
class SuggestRequest:
    """One request; texts are normalised by `logs.schema`.

    Attributes:
      prefix: the text in the search box.
      history: the user's queries, newest first.
      profile: static profile values, in the order of the log's columns.
      k: most suggestions.
      within: deadline in seconds from now; None: the engine's default.
      minutes: age of each query of the history; empty: all are new.
    """

    prefix: str
    history: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    k: int = 16
    within: float | None = None
    minutes: tuple[float, ...] = ()

    @property
    def key(self) -> tuple | None:
        """The key for caching the list; None if it depends on a user's history."""
        return None if self.history else (self.prefix, self.profile)


@dataclass(frozen=True)
class SuggestResult:
    """One list and its inputs.

    Attributes:
      texts, scores: suggestions, best first, and their log-probabilities (None: most popular).
      items: candidates, counts and history that the model read; None: no model read any.
      related, ids: the related queries that a text model read, and their semantic ids.
      written: for each suggestion, whether the model wrote it instead of choosing a candidate;
        empty: it wrote none.
    """

    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    items: Items | None = field(default=None, compare=False)
    related: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    written: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A list and how it was made. Times in seconds; `batch` is the size of its batch."""

    result: SuggestResult
    level: str
    version: str
    cached: bool = False
    waited: float = 0.0
    took: float = 0.0
    batch: int = 0


class Full(Exception):
    """The queue is full, or the wait would be too long; retry in `after` seconds."""

    def __init__(self, after: float):
        super().__init__("too many requests are waiting")
        self.after = after


class NotReady(Exception):
    """The model is still being loaded and compiled."""


class Late(Exception):
    """The request's deadline passed before the model saw it."""
