"""The bodies of the HTTP interface: fields, limits and validation.

Limits on text also hold after normalisation (`logs.schema`). They are those of `ingest`, so that
the next update accepts every accepted event. Errors never repeat a value of the client.
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
ABOUT = "about_"  # an error type is this prefix and the field to report


def _plain(text: str) -> str:
    """Refuses control characters and lone surrogates."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            raise ValueError("control characters and lone surrogates are not allowed")
    return text


def _normalised(normalise: Callable[[str], str], most: int, least: int = 0) -> AfterValidator:
    def check(text: str) -> str:
        normalised = normalise(text)
        if not least <= len(normalised) <= most:
            raise ValueError(f"expected {least} to {most} characters after normalisation")
        return normalised

    return AfterValidator(check)


# All texts have these types, so /feedback accepts every text that /suggest accepts or returns.
Text = Annotated[str, AfterValidator(_plain)]
Prefix = Annotated[Text, Field(max_length=PREFIX), _normalised(normalise_prefix, PREFIX)]
Query = Annotated[Text, Field(max_length=QUERY), _normalised(normalise_query, QUERY, 1)]
Item = Annotated[Text, Field(max_length=NAME), _normalised(str.strip, NAME, 1)]
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
            raise ValueError("a column of the log's schema is no profile column")
    return values


Profile = Annotated[dict[Value, Value], Field(max_length=PROFILE), AfterValidator(_profile)]


def _error(field: str, message: str) -> PydanticCustomError:
    """An inconsistency between several fields, reported for one of them."""
    return PydanticCustomError(ABOUT + field, message)


def _same_length(history: list[str] | None, minutes: list[float] | None) -> None:
    if minutes is not None and len(minutes) != len(history or ()):
        raise _error("history_minutes", "expected one number for each entry of history")


class Body(BaseModel):
    """The base of all bodies: no unknown fields, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SuggestBody(Body):
    """The text in the search box, and the user."""

    prefix: Prefix = Field("", description="The typed text; may be empty.")
    user_id: UserId | None = Field(None, description="The user whose stored history is used.")
    history: Earlier | None = Field(
        None, description="Earlier queries, oldest first; used instead of the stored history."
    )
    history_minutes: Ages | None = Field(
        None, description="Age of each entry of `history` in minutes; default: just now."
    )
    profile: Profile = Field(
        default_factory=dict, description="Static profile values by the log's column names."
    )
    k: int = Field(10, ge=1, le=MOST_SUGGESTIONS, description="Most suggestions.")
    deadline_ms: int | None = Field(
        None, ge=1, le=60_000, description="Longest useful time for the answer."
    )
    compare: bool = Field(False, description="Also list the most popular completions.")
    why: bool = Field(False, description="Also return the inputs of the list.")

    @model_validator(mode="after")
    def _consistent(self) -> SuggestBody:
        _same_length(self.history, self.history_minutes)
        return self


class FeedbackBody(Body):
    """The outcome of one request; may be sent again with items opened or ordered later."""

    request_id: RequestId = Field(
        description="The id from /suggest; with another id, only this user's lists change."
    )
    user_id: UserId = Field("", description="Empty: no history is stored.")
    session_id: UserId = ""
    prefix: Prefix = Field("", description="The text in the search box.")
    shown: Annotated[list[Query], Field(max_length=SHOWN)] = Field(
        default_factory=list, description="The list the user saw, in order."
    )
    clicked_position: int | None = Field(
        None, ge=0, lt=SHOWN, description="Index of the chosen entry of `shown`."
    )
    query: Query | None = Field(None, description="The query, if it was not chosen from `shown`.")
    clicked_items: Annotated[list[Item], Field(max_length=ITEMS)] = Field(default_factory=list)
    ordered_items: Annotated[list[Item], Field(max_length=ITEMS)] = Field(default_factory=list)
    profile: Profile = Field(default_factory=dict)
    history: Earlier | None = Field(
        None, description="As in /suggest, if the client stores the history itself."
    )
    history_minutes: Ages | None = Field(None, description="As in /suggest.")

    @model_validator(mode="after")
    def _consistent(self) -> FeedbackBody:
        _same_length(self.history, self.history_minutes)
        if self.clicked_position is not None:
            if self.clicked_position >= len(self.shown):
                raise _error("clicked_position", "is outside the shown list")
            chosen = self.shown[self.clicked_position]
            if self.query not in (None, chosen):
                raise _error("query", "is not the entry of shown at clicked_position")
            self.query = chosen
        elif self.query is None and not (self.clicked_items or self.ordered_items):
            message = "is missing; so are clicked_position, clicked_items and ordered_items"
            raise _error("query", message)
        return self
