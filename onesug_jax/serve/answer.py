"""What the engine gives for a request: a list and how it came about, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from onesug_jax.serve.requests import SuggestResult


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
