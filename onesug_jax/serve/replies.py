"""The replies of the HTTP interface, for its description in OpenAPI."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Suggested(BaseModel):
    """One suggestion; `score` is its log-probability, null in a list by popularity."""

    text: str
    score: float | None


class Related(BaseModel):
    """A related query that a text model read, and its semantic id, coarse to fine."""

    text: str
    id: list[int] | None


class Past(BaseModel):
    """A query of the history and its age in minutes."""

    text: str
    minutes: float | None


class Alike(BaseModel):
    """The query of the history most similar to a suggestion, and the cosine of their vectors."""

    text: str
    cosine: float


class Counted(BaseModel):
    """The as-of counts of a suggestion by column (searches at each half-life, orders, item clicks,
    searches after this prefix); null if it is no candidate. `written`: the model wrote it.
    """

    text: str
    written: bool
    counts: dict[str, float] | None
    alike: Alike | None


class Trending(BaseModel):
    """A candidate that is searched far more than usual: searches `now` (half-life 17 h), the
    number that its share of all searches predicts (`usual`), and `all` searches so far.
    """

    text: str
    now: float
    usual: float
    all: float


class Why(BaseModel):
    """The inputs of a list: `related` for text models; `candidates`, `counts` and `trending` for
    models that read items.
    """

    history: list[Past] = Field(description="The queries used, newest first.")
    unknown: list[str] = Field(description="History queries unused: too few others searched them.")
    candidates: int | None = Field(description="Number of candidates of the list.")
    counts: list[Counted]
    trending: list[Trending]
    related: list[Related]
    batch: int
    waited_ms: float
    model_ms: float


class SuggestReply(BaseModel):
    """A list, best first, and its degradation level: full, candidates, beam or popular."""

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
    """The result of an event: "new", "more" (items were added) or "same"."""

    request_id: str
    stored: str


class UserReply(BaseModel):
    """The stored data of a user: latest queries, newest first, and the number of events."""

    user_id: str
    history: list[str]
    events: int


class Remaining(BaseModel):
    """A place that may still contain data of a deleted user, and until when."""

    what: str
    until: str


class Deleted(BaseModel):
    """The number of deleted events, and data that remains elsewhere."""

    user_id: str
    deleted: int
    remains: list[Remaining]


class Mistake(BaseModel):
    """One error and its field."""

    field: str
    message: str


class Mistakes(BaseModel):
    """The errors of a request."""

    errors: list[Mistake]
