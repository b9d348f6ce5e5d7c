"""The bodies of the HTTP interface: their fields, their limits, and what is wrong with them.

Limits on text hold after normalisation too (`logs.schema`), and are those of `ingest`, so that an
event that is accepted passes the gate of the next update. No value that a client sent is repeated
in an error.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Annotated, Any

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


_ABOUT = "about_"


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
    return PydanticCustomError(_ABOUT + field, message)


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


# ------------------------------------------------------------------ replies, for the OpenAPI page


class Suggested(BaseModel):
    """One suggestion; `score` is its log-probability, null where it is there by popularity."""

    text: str
    score: float | None


class Related(BaseModel):
    """A query related to the prefix that a model of text read, with its semantic id, coarse to
    fine.
    """

    text: str
    id: list[int] | None


class Past(BaseModel):
    """A query of the history and how many minutes ago it was searched."""

    text: str
    minutes: float | None


class Alike(BaseModel):
    """The query of the history that a suggestion is most alike to: the cosine of their vectors."""

    text: str
    cosine: float


class Counted(BaseModel):
    """What the model knew of a suggestion: its as-of counts by column (searches at each half-life,
    orders, item clicks, searches after just this prefix); null where it is no candidate. `written`:
    the model wrote it, where the candidates left room.
    """

    text: str
    written: bool
    counts: dict[str, float] | None
    alike: Alike | None


class Trending(BaseModel):
    """A candidate that is searched far more than usual: its searches `now` (half-life 17 h), how
    many its `usual` share of all searches predicts, and `all` its searches so far.
    """

    text: str
    now: float
    usual: float
    all: float


class Why(BaseModel):
    """What a list was made from. `related` comes of models of text; `candidates`, `counts` and
    `trending` of models that read items.
    """

    history: list[Past] = Field(description="The queries used, newest first.")
    unknown: list[str] = Field(description="Queries of the history that nobody else searched.")
    candidates: int | None = Field(description="How many queries the list was chosen from.")
    counts: list[Counted]
    trending: list[Trending]
    related: list[Related]
    batch: int
    waited_ms: float
    model_ms: float


class SuggestReply(BaseModel):
    """A list, best first, and the degradation level it came from: full, beam or popular."""

    request_id: str
    prefix: str
    suggestions: list[Suggested]
    level: str
    version: str
    cached: bool
    milliseconds: float
    most_popular: list[str] | None = None
    why: Why | None = None


class FeedbackReply(BaseModel):
    """What became of an event: "new", "more" (items were added) or "same"."""

    request_id: str
    stored: str


class UserReply(BaseModel):
    """What is stored of a user: the latest queries, newest first, and how many events."""

    user_id: str
    history: list[str]
    events: int


class Remaining(BaseModel):
    """What may still hold something of a user, and until when."""

    what: str
    until: str


class Deleted(BaseModel):
    """How many events of the user were deleted, and what remains elsewhere."""

    user_id: str
    deleted: int
    remains: list[Remaining]


class Mistake(BaseModel):
    """One thing that is wrong, and in which field."""

    field: str
    message: str


class Mistakes(BaseModel):
    """Why a request was not answered."""

    errors: list[Mistake]


def mistakes(errors: Sequence[dict[str, Any]]) -> dict:
    """What is wrong, as `Mistakes`, of pydantic's errors; nothing of what was sent is in them."""
    found = []
    for error in errors:
        place = list(map(str, error["loc"]))
        if place and place[0] in ("body", "path"):
            del place[0]
        if error["type"] == "json_invalid":
            place = []  # what stands there is an offset
        if error["type"].startswith(_ABOUT):
            place = [error["type"].removeprefix(_ABOUT)]
        named = [part if _nameable(part) else "?" for part in place]
        message = error["msg"].removeprefix("Value error, ")
        found.append({"field": ".".join(named) or "body", "message": message})
    return {"errors": found}


def _nameable(part: str) -> bool:
    """Whether a part of a place is a field's name or a number, not a text somebody typed."""
    return part.isascii() and part.replace("_", "").isalnum() and len(part) <= 32
