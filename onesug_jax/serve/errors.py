"""Error replies: a status, the field and a message; never text from the request."""

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


def error_reply(
    status: int, field: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A reply of `replies.Mistakes` with one error."""
    return JSONResponse({"errors": [{"field": field, "message": message}]}, status, headers)


def queue_full_reply(after: float) -> JSONResponse:
    """A request was refused; retry in `after` seconds."""
    retry = {"retry-after": str(max(1, math.ceil(after)))}
    return error_reply(503, "queue", "too many requests are waiting", retry)


def add_errors(app: FastAPI) -> None:
    """Reports all errors as `replies.Mistakes`."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        errors = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in errors) else 422
        return JSONResponse({"errors": _without_values(errors)}, status)

    @app.exception_handler(HTTPException)
    async def refused(request, error):
        field = {404: "path", 405: "method"}.get(error.status_code, "body")
        return error_reply(error.status_code, field, str(error.detail), error.headers)

    @app.exception_handler(Full)
    async def queue_full(request, error):
        return queue_full_reply(error.after)

    @app.exception_handler(TooMany)
    async def too_many(request, error):
        after = {"retry-after": str(math.ceil(error.after))}
        return error_reply(429, "source", str(error), after)

    @app.exception_handler(NotReady)
    async def not_ready(request, error):
        return error_reply(503, "model", str(error), {"retry-after": "2"})

    @app.exception_handler(Late)
    async def late(request, error):
        return error_reply(504, "deadline_ms", str(error))

    @app.exception_handler(Conflict)
    async def conflict(request, error):
        return error_reply(409, error.field, str(error))

    @app.exception_handler(Unknown)
    async def unknown(request, error):
        return error_reply(404, "request_id", "this request is not stored; send its query first")

    @app.exception_handler(Busy)
    @app.exception_handler(sqlite3.Error)
    async def busy(request, error):
        return error_reply(503, "store", "events cannot be written now", {"retry-after": "1"})


def _without_values(errors: Sequence[Any]) -> list[dict[str, str]]:
    """The fields and messages of pydantic's errors, without text from the request."""
    replies = []
    for error in errors:
        path = list(map(str, error["loc"]))
        if path and path[0] in ("body", "path"):
            del path[0]
        if error["type"] == "json_invalid":
            path = []  # `loc` is an offset
        if error["type"].startswith(ABOUT):
            path = [error["type"].removeprefix(ABOUT)]
        names = [part if _is_name(part) else "?" for part in path]
        message = error["msg"].removeprefix("Value error, ")
        replies.append({"field": ".".join(names) or "body", "message": message})
    return replies


def _is_name(part: str) -> bool:
    """Whether a part of a field's path looks like a name or a number, not like a user's text."""
    return part.isascii() and part.replace("_", "").isalnum() and len(part) <= 32
