"""The replies of the HTTP interface, for the page that describes it."""

from __future__ import annotations

from pydantic import BaseModel, Field


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
