"""The HTTP interface as a FastAPI application.

    POST /suggest    the list for what stands in the box     GET  /          the page
    POST /feedback   what came of it                         GET  /docs      the interface, to read
    GET, DELETE /users/ID  what is stored of a user           GET  /health /ready /metrics

HEAD asks for what GET would give, without its body.

Every mistake of a client is a 4xx that names the field; 503 with Retry-After says that there is no
place in the queue or no model yet, 504 that the deadline passed. `server` listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import metadata, resources
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from onesug_jax.serve import bodies
from onesug_jax.serve.engine import Engine
from onesug_jax.serve.feedback import Busy, Conflict, Event, FeedbackStore, Unknown
from onesug_jax.serve.guards import LOOPBACK, Admission, Gate, Head, Limits, Recorder
from onesug_jax.serve.histories import Histories
from onesug_jax.serve.live import History
from onesug_jax.serve.requests import Answer, Full, Late, NotReady, SuggestRequest
from onesug_jax.serve.server import ServerConfig
from onesug_jax.serve.trust import TooMany, Trust
from onesug_jax.serve.version import ModelVersion
from onesug_jax.serve.why import explain

_PAGE = {  # path -> file of web/, media type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/why.js": ("why.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_GONE = 499  # nobody hears it: the client closed the connection


def make_app(
    engine: Engine,
    store: FeedbackStore,
    config: ServerConfig,
    say: Callable[[str], None] = print,
) -> FastAPI:
    """The application. It closes `engine` and `store` when it ends, in this order."""
    histories = Histories(store)
    trust = Trust(store, keyed=config.key() is not None)
    hosts = None
    if config.local or config.hosts:
        hosts = {*LOOPBACK, "[::1]", *config.hosts}

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, engine.close)
        await loop.run_in_executor(None, store.close)
        histories.close()

    app = FastAPI(
        title="onesug_jax",
        summary="Suggestions while the user types",
        version=_package_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(Recorder, metrics=engine.metrics, say=say if config.log else None),
            Middleware(
                Gate, key=config.key(), origins=config.origins, hosts=hosts, page=tuple(_PAGE)
            ),
            Middleware(
                CORSMiddleware,
                allow_origins=config.origins,
                allow_methods=["GET", "HEAD", "POST", "DELETE"],
                allow_headers=["content-type", "x-api-key", "authorization"],
            ),
            Middleware(Admission, path="/suggest", crowded=engine.crowded),
            Middleware(Limits, body_bytes=config.body_bytes, body_seconds=config.body_seconds),
            Middleware(Head),
        ],
        responses={
            code: {"model": bodies.Mistakes, "description": text}
            for code, text in {
                400: "The body is no JSON.",
                401: "The API key is missing or wrong.",
                403: "Pages of this origin may not ask.",
                408: "The body came too slowly.",
                413: "The body is too large.",
                422: "A field is wrong; it is named.",
            }.items()
        },
    )
    _add_errors(app)
    _add_page(app)

    async def history_of(version: ModelVersion, body: bodies.SuggestBody) -> History:
        if body.history is not None:
            return _newest_first(body.history, body.history_minutes, version.history)
        if not body.user_id:
            return (), ()
        if version.live is not None:
            return version.live.history(body.user_id)
        stored, now = await histories.of(body.user_id, version.history), _now_ms()
        return tuple(stored), tuple(max(now - at, 0) / 60_000 for at in stored.values())

    def source(request: Request) -> str | None:
        return trust.source(request.client.host if request.client else None)

    @app.post("/suggest", response_model=bodies.SuggestReply, responses=_BUSY)
    async def suggest(body: bodies.SuggestBody, request: Request):
        """The list for what stands in the box, best first."""
        began = time.perf_counter()
        version = engine.version
        history, minutes = await history_of(version, body)
        spent = time.perf_counter() - began
        asked = SuggestRequest(
            prefix=body.prefix,
            history=history,
            minutes=minutes,
            profile=_profile_values(version, body.profile),
            k=body.k,
            within=None if body.deadline_ms is None else body.deadline_ms / 1000 - spent,
        )
        answer = await _unless_gone(request, engine.submit(asked))
        if answer is None:
            engine.metrics.abandoned()
            return Response(status_code=_GONE)
        reply = {
            "request_id": trust.request_id(asked.prefix, body.user_id or "", source(request)),
            "prefix": asked.prefix,
            "suggestions": [
                {"text": text, "score": None if score is None else round(score, 4)}
                for text, score in zip(answer.result.texts, answer.result.scores, strict=True)
            ],
            "level": answer.level,
            "version": answer.version,
            "cached": answer.cached,
            "milliseconds": round(1000 * (time.perf_counter() - began), 2),
            "most_popular": list(engine.popular(asked).result.texts) if body.compare else None,
            "why": explain(version, asked, answer) if body.why else None,
        }
        if config.log and config.log_text:
            say(f"typed {body.prefix!r} after {list(history)}: {answer.level}")
        return Response(to_json(reply), media_type="application/json")

    @app.post(
        "/feedback",
        response_model=bodies.FeedbackReply,
        responses={
            **_BUSY,
            404: _wrong("Not stored yet."),
            409: _wrong("Contradicts the stored."),
            429: _wrong("Too much of one address; Retry-After says when."),
        },
    )
    async def feedback(body: bodies.FeedbackBody, request: Request):
        """What came of one request; on the disk before it is answered."""
        live = None
        if engine.ready:
            _profile_values(engine.version, body.profile)
            live = engine.version.live
        event = Event(**{**body.model_dump(), "query": body.query or "", "timestamp_ms": _now_ms()})
        try:
            trust.admit(source(request))
            trusted = trust.trusts(event, source(request))
            stored = await asyncio.wrap_future(store.add(event, trusted))
        except Exception as error:
            engine.metrics.feedback(type(error).__name__.lower())
            raise
        engine.metrics.feedback(stored if trusted or stored != "new" else "untrusted")
        if live is not None and stored == "new":
            live.remember(event.user_id, event.query, event.timestamp_ms)
        return {"request_id": body.request_id, "stored": stored}

    @app.get("/users/{user_id:path}", response_model=bodies.UserReply)
    async def user(user_id: Annotated[bodies.KnownUser, Path()]):
        """What is stored of a user."""
        events = await histories.read(store.count, user_id)
        history = await histories.read(store.history, user_id, bodies.HISTORY_LENGTH)
        return {"user_id": user_id, "history": list(history), "events": events}

    @app.delete("/users/{user_id:path}", response_model=bodies.Deleted, responses=_BUSY)
    async def forget(user_id: Annotated[bodies.KnownUser, Path()]):
        """Deletes what is stored of a user, overwritten on the disk, and says what remains."""
        deleted = await asyncio.wrap_future(store.forget(user_id))
        if engine.ready and engine.version.live is not None:
            engine.version.live.forget(user_id)
        remains = _remaining(
            await histories.read(store.exports), engine.version.name if engine.ready else None
        )
        return {"user_id": user_id, "deleted": deleted, "remains": remains}

    @app.get("/health")
    async def health():
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses=_BUSY)
    async def ready():
        """Requests are answered; 503 while the model is loaded and compiled.

        While `warming`, the smaller shapes are still being compiled, and answers take longer. Where
        `store` is "slow" or "down", lists are made without stored histories, and feedback gets 503.
        """
        version = engine.version
        return {
            "version": version.name,
            "profile": list(version.profile),
            "levels": list(engine.levels),
            "warming": engine.warming,
            "store": await histories.state(),
        }

    @app.get("/metrics")
    async def metrics():
        """Counters and times in Prometheus's text format."""
        text = engine.metrics.text(engine.waiting)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _package_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("onesug_jax")
    return "0"


def _wrong(text: str) -> dict[str, Any]:
    return {"model": bodies.Mistakes, "description": text}


_BUSY: dict[int | str, dict[str, Any]] = {
    503: _wrong("No place in the queue, or no model yet; Retry-After says when."),
    504: _wrong("The deadline passed."),
}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _remaining(exports: Sequence[tuple[str, int]], version: str | None) -> list[dict[str, str]]:
    """What a deletion leaves, as `bodies.Remaining`; of exports the name of the file alone."""
    found = [
        {
            "what": f"exported log {os.path.basename(path)} of "
            f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC",
            "until": "its owner deletes it",
        }
        for path, at_ms in exports
    ]
    if version is not None:
        what = "histories and counts in the memory of servers"
        until = "each has looked at the store, within seconds, and made its counts anew"
        found.append({"what": what, "until": until})
        what = f"model {version}, its log and its counts, and those of versions before it"
        until = "the next update, which leaves this user out; versions before it until removed"
        found.append({"what": what, "until": until})
    return found


def _profile_values(version: ModelVersion, profile: dict[str, str]) -> tuple[str, ...]:
    """Values in the order of the log's columns; a name the log does not have is a mistake."""
    for name in profile:
        if name not in version.profile:
            have = ", ".join(version.profile) or "none"
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("profile", name), "msg": f"this log has: {have}"}]
            )
    return tuple(profile.get(name, "") for name in version.profile) if profile else ()


async def _unless_gone(request: Request, future: Future) -> Answer | None:
    """The answer; None, and the request is taken back, if the client goes before it is there."""
    if future.done():
        return future.result()
    answer = asyncio.ensure_future(asyncio.wrap_future(future))
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        return None
    finally:
        gone.cancel()
        answer.cancel()


def _newest_first(history: Sequence[str], minutes: Sequence[float] | None, most: int) -> History:
    """The last `most` distinct queries of a history, newest first, and how long ago each was last
    searched.
    """
    texts = tuple(dict.fromkeys(reversed(history)))[:most]
    latest = dict(zip(history, minutes or (), strict=False))
    return texts, tuple(latest[text] for text in texts) if minutes else ()


def _add_errors(app: FastAPI) -> None:
    """How mistakes are reported: always as `bodies.Mistakes`, never with what was sent."""

    def respond(status: int, field: str, message: str, headers=None) -> JSONResponse:
        errors = {"errors": [{"field": field, "message": message}]}
        return JSONResponse(errors, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        found = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in found) else 422
        return JSONResponse(bodies.mistakes(found), status)

    @app.exception_handler(HTTPException)
    async def refused(request, error):
        field = {404: "path", 405: "method"}.get(error.status_code, "body")
        return respond(error.status_code, field, str(error.detail), error.headers)

    @app.exception_handler(Full)
    async def full(request, error):
        after = {"retry-after": str(max(1, math.ceil(error.after)))}
        return respond(503, "queue", "too many requests are waiting", after)

    @app.exception_handler(TooMany)
    async def too_many(request, error):
        after = {"retry-after": str(math.ceil(error.after))}
        return respond(429, "source", str(error), after)

    @app.exception_handler(NotReady)
    async def not_ready(request, error):
        return respond(503, "model", str(error), {"retry-after": "2"})

    @app.exception_handler(Late)
    async def late(request, error):
        return respond(504, "deadline_ms", str(error))

    @app.exception_handler(Conflict)
    async def conflict(request, error):
        return respond(409, error.field, str(error))

    @app.exception_handler(Unknown)
    async def unknown(request, error):
        return respond(404, "request_id", "this request is not stored yet: send its query first")

    @app.exception_handler(Busy)
    @app.exception_handler(sqlite3.Error)
    async def busy(request, error):
        return respond(503, "store", "events cannot be written just now", {"retry-after": "1"})


def _add_page(app: FastAPI) -> None:
    """The page: a few files held in memory, so no path leads anywhere else."""
    web = resources.files("onesug_jax.serve") / "web"

    def add(path: str, content: bytes, media_type: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page():
            headers = {"cache-control": "no-cache"}
            return Response(content, media_type=media_type, headers=headers)

    for path, (name, media_type) in _PAGE.items():
        add(path, (web / name).read_bytes(), media_type)
