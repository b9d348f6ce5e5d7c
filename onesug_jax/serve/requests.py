"""What the engine is asked and what it answers, or why it does not; free of HTTP and any model."""

from __future__ import annotations

from dataclasses import dataclass, field

from onesug_jax.logs.asof.items import Items


@dataclass(frozen=True)
class SuggestRequest:
    """One request; text normalised as `logs.schema` does it.

    Attributes:
      prefix: what stands in the search box.
      history: the user's queries, newest first.
      profile: static profile values, in the order of the log's columns.
      k: how many suggestions are wanted.
      within: seconds from now until the answer is of no use; None: the engine's default.
      minutes: how long ago each query of the history was searched; none: just now.
    """

    prefix: str
    history: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    k: int = 16
    within: float | None = None
    minutes: tuple[float, ...] = ()

    @property
    def key(self) -> tuple | None:
        """What a finished list may be cached under; None where it is this user's own."""
        return None if self.history else (self.prefix, self.profile)


@dataclass(frozen=True)
class SuggestResult:
    """One list and what it was made from.

    Attributes:
      texts, scores: suggestions, best first, and their log-probabilities (None: most popular).
      items: candidates, counts and history that the model read; None: it read none.
      related, ids: of a model of text, the related queries it read, with their semantic ids.
      written: which of the suggestions the model wrote, where it was asked to; no candidate had
        them.
    """

    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    items: Items | None = field(default=None, compare=False)
    related: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    written: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A list, and how it came about. Times in seconds; `batch` is the size of its batch."""

    result: SuggestResult
    level: str
    version: str
    cached: bool = False
    waited: float = 0.0
    took: float = 0.0
    batch: int = 0


class Full(Exception):
    """No answer would come in time, or the queue has no place; `after` says when to ask again."""

    def __init__(self, after: float):
        super().__init__("too many requests are waiting")
        self.after = after


class NotReady(Exception):
    """The model is still being loaded and compiled."""


class Late(Exception):
    """The request's deadline passed before the model saw it."""
