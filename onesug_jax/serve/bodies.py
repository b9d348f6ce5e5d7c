"""The bodies of the HTTP interface: their fields, their limits, and what is wrong with them.

Limits on text hold after normalisation too (`logs.schema`), and are those of `ingest`, so that an
event that is accepted passes the gate of the next update. No value that a client sent is repeated
in an error.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from onesug_jax.logs.schema import (
    HISTORY,
    HISTORY_MINUTES,
    RECENT,
    RECENT_MINUTES,
    REQUIRED,
    normalise_prefix,
    normalise_query,
)

PREFIX, QUERY, NAME = 64, 128, 128  # characters
SHOWN, HISTORY_LENGTH, ITEMS, PROFILE = 64, 50, 100, 32  # entries
MOST_SUGGESTIONS = 64


ABOUT = "about_"


def _plain(text: str) -> str:
    """Text without control characters or halves of characters, which no keyboard types."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            raise ValueError("control characters and lone surrogates are not allowed")
    return text


def _shaped(shape: Callable[[str], str], most: int, least: int = 0) -> AfterValidator:
    def check(text: str) -> str:
        shaped = shape(text)
        if not least <= len(shaped) <= most:
            raise ValueError(f"expected {least} to {most} characters after normalisation")
        return shaped

    return AfterValidator(check)


# Every text of every body is one of these, so /feedback takes whatever /suggest took or gave.
Text = Annotated[str, AfterValidator(_plain)]
Prefix = Annotated[Text, Field(max_length=PREFIX), _shaped(normalise_prefix, PREFIX)]
Query = Annotated[Text, Field(max_length=QUERY), _shaped(normalise_query, QUERY, 1)]
Item = Annotated[Text, Field(max_length=NAME), _shaped(str.strip, NAME, 1)]
UserId = Annotated[Text, Field(max_length=NAME)]
KnownUser = Annotated[UserId, Field(min_length=1)]
Value = Annotated[Text, Field(max_length=NAME)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]
Earlier = Annotated[list[Query], Field(max_length=HISTORY_LENGTH)]
Minutes = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ages = Annotated[list[Minutes], Field(max_length=HISTORY_LENGTH)]


def _profile(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if name in (*REQUIRED, HISTORY, HISTORY_MINUTES, RECENT, RECENT_MINUTES):
            raise ValueError("the log's own columns are no profile")
    return values


Profile = Annotated[dict[Value, Value], Field(max_length=PROFILE), AfterValidator(_profile)]


def _wrong(field: str, message: str) -> PydanticCustomError:
    """A mistake that shows in several fields together, reported at one of them."""
    return PydanticCustomError(ABOUT + field, message)


def _same_length(history: list[str] | None, minutes: list[float] | None) -> None:
    if minutes is not None and len(minutes) != len(history or ()):
        raise _wrong("history_minutes", "expected one number for each entry of history")


class Body(BaseModel):
    """What all bodies have in common: unknown fields are mistakes, numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SuggestBody(Body):
    """What stands in the box, and who is typing."""

    prefix: Prefix = Field("", description="What was typed; may be empty.")
    user_id: UserId | None = Field(None, description="Whose stored history to use.")
    history: Earlier | None = Field(
        None, description="Earlier queries, oldest first; used instead of the stored history."
    )
    history_minutes: Ages | None = Field(
        None, description="How many minutes ago each of `history` was searched; else just now."
    )
    profile: Profile = Field(
        default_factory=dict, description="Static profile values by the log's column names."
    )
    k: int = Field(10, ge=1, le=MOST_SUGGESTIONS, description="Most suggestions.")
    deadline_ms: int | None = Field(
        None, ge=1, le=60_000, description="When the answer is of no use any more."
    )
    compare: bool = Field(False, description="Also list the most popular completions.")
    why: bool = Field(False, description="Also say what the list was made from.")

    @model_validator(mode="after")
    def _consistent(self) -> SuggestBody:
        _same_length(self.history, self.history_minutes)
        return self


class FeedbackBody(Body):
    """What came of one request; may be sent again, with items opened or ordered later."""

    request_id: RequestId = Field(
        description="As /suggest gave it; the client's own counts for its user alone."
    )
    user_id: UserId = Field("", description="Empty: nobody's history.")
    session_id: UserId = ""
    prefix: Prefix = Field("", description="What stood in the box.")
    shown: Annotated[list[Query], Field(max_length=SHOWN)] = Field(
        default_factory=list, description="The list the user saw, in order."
    )
    clicked_position: int | None = Field(
        None, ge=0, lt=SHOWN, description="Which of `shown` was chosen, from 0."
    )
    query: Query | None = Field(None, description="What was typed and searched instead.")
    clicked_items: Annotated[list[Item], Field(max_length=ITEMS)] = Field(default_factory=list)
    ordered_items: Annotated[list[Item], Field(max_length=ITEMS)] = Field(default_factory=list)
    profile: Profile = Field(default_factory=dict)
    history: Earlier | None = Field(
        None, description="As in /suggest, where the client keeps the history itself."
    )
    history_minutes: Ages | None = Field(None, description="As in /suggest.")

    @model_validator(mode="after")
    def _consistent(self) -> FeedbackBody:
        _same_length(self.history, self.history_minutes)
        if self.clicked_position is not None:
            if self.clicked_position >= len(self.shown):
                raise _wrong("clicked_position", "lies outside the shown list")
            chosen = self.shown[self.clicked_position]
            if self.query not in (None, chosen):
                raise _wrong("query", "is not what stands at clicked_position of the shown list")
            self.query = chosen
        elif self.query is None and not (self.clicked_items or self.ordered_items):
            message = "or clicked_position, clicked_items or ordered_items is needed"
            raise _wrong("query", message)
        return self
