"""How mistakes are reported: a status, the field and a sentence; never anything that was sent."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onesug_jax.serve.bodies import ABOUT
from onesug_jax.serve.feedback import Busy, Conflict, Unknown
from onesug_jax.serve.requests import Full, Late, NotReady
from onesug_jax.serve.trust import TooMany


def mistake(
    status: int, field: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """`replies.Mistakes` with one mistake."""
    return JSONResponse({"errors": [{"field": field, "message": message}]}, status, headers)


def full(after: float) -> JSONResponse:
    """There is no place for a request; in so many seconds there may be."""
    retry = {"retry-after": str(max(1, math.ceil(after)))}
    return mistake(503, "queue", "too many requests are waiting", retry)


def add_errors(app: FastAPI) -> None:
    """How mistakes are reported: always as `replies.Mistakes`, never with what was sent."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        found = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in found) else 422
        return JSONResponse({"errors": _named(found)}, status)

    @app.exception_handler(HTTPException)
    async def refused(request, error):
        field = {404: "path", 405: "method"}.get(error.status_code, "body")
        return mistake(error.status_code, field, str(error.detail), error.headers)

    @app.exception_handler(Full)
    async def no_place(request, error):
        return full(error.after)

    @app.exception_handler(TooMany)
    async def too_many(request, error):
        after = {"retry-after": str(math.ceil(error.after))}
        return mistake(429, "source", str(error), after)

    @app.exception_handler(NotReady)
    async def not_ready(request, error):
        return mistake(503, "model", str(error), {"retry-after": "2"})

    @app.exception_handler(Late)
    async def late(request, error):
        return mistake(504, "deadline_ms", str(error))

    @app.exception_handler(Conflict)
    async def conflict(request, error):
        return mistake(409, error.field, str(error))

    @app.exception_handler(Unknown)
    async def unknown(request, error):
        return mistake(404, "request_id", "this request is not stored yet: send its query first")

    @app.exception_handler(Busy)
    @app.exception_handler(sqlite3.Error)
    async def busy(request, error):
        return mistake(503, "store", "events cannot be written just now", {"retry-after": "1"})


def _named(errors: Sequence[Any]) -> list[dict[str, str]]:
    """What is wrong, and in which field, of pydantic's errors; nothing of what was sent."""
    found = []
    for error in errors:
        place = list(map(str, error["loc"]))
        if place and place[0] in ("body", "path"):
            del place[0]
        if error["type"] == "json_invalid":
            place = []  # what stands there is an offset
        if error["type"].startswith(ABOUT):
            place = [error["type"].removeprefix(ABOUT)]
        named = [part if _nameable(part) else "?" for part in place]
        message = error["msg"].removeprefix("Value error, ")
        found.append({"field": ".".join(named) or "body", "message": message})
    return found


def _nameable(part: str) -> bool:
    """Whether a part of a place is a field's name or a number, not a text somebody typed."""
    return part.isascii() and part.replace("_", "").isalnum() and len(part) <= 32
