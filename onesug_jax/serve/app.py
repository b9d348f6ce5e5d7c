"""The HTTP interface as a FastAPI application.

    POST /suggest    the list for a prefix                    GET  /         the page
    POST /feedback   the outcome of a request                 GET  /docs     the reference
    GET, DELETE /users/ID  the stored data of a user          GET  /health /ready /metrics

Every GET route also answers HEAD. A client error is a 4xx that names the field. 503 with
Retry-After means that the queue is full or no model is loaded, 504 that the deadline passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import metadata
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from onesug_jax.serve import bodies, replies
from onesug_jax.serve.engine import Engine
from onesug_jax.serve.errors import add_errors
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.guards import LOOPBACK, Admission, Gate, Limits, Recorder
from onesug_jax.serve.histories import Histories
from onesug_jax.serve.journal import now_ms
from onesug_jax.serve.live import History
from onesug_jax.serve.page import PAGE, add_page
from onesug_jax.serve.requests import Answer, SuggestRequest
from onesug_jax.serve.server import ServerConfig
from onesug_jax.serve.trust import Trust
from onesug_jax.serve.version import ModelVersion
from onesug_jax.serve.why import explain

_CLIENT_CLOSED_REQUEST = 499


def make_app(
    engine: Engine,
    store: FeedbackStore,
    config: ServerConfig,
    say: Callable[[str], None] = print,
) -> FastAPI:
    """The application. It closes `engine` and then `store` when it ends."""
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
                Gate, key=config.key(), origins=config.origins, hosts=hosts, page=tuple(PAGE)
            ),
            Middleware(
                CORSMiddleware,
                allow_origins=config.origins,
                allow_methods=["GET", "HEAD", "POST", "DELETE"],
                allow_headers=["content-type", "x-api-key", "authorization"],
            ),
            Middleware(Admission, path="/suggest", crowded=engine.crowded),
            Middleware(Limits, body_bytes=config.body_bytes, body_seconds=config.body_seconds),
        ],
        responses={
            400: _error("The body is not JSON."),
            401: _error("The API key is missing or wrong."),
            403: _error("Pages of this origin are not allowed."),
            408: _error("The body arrived too slowly."),
            413: _error("The body is too large."),
            422: _error("A field is invalid; the error names it."),
        },
    )
    add_errors(app)
    add_page(app)

    async def history_of(version: ModelVersion, body: bodies.SuggestBody) -> History:
        if body.history is not None:
            return _newest_first(body.history, body.history_minutes, version.history)
        if not body.user_id:
            return (), ()
        if version.live is not None:
            return version.live.history(body.user_id)
        stored, now = await histories.of(body.user_id, version.history), now_ms()
        return tuple(stored), tuple(max(now - at, 0) / 60_000 for at in stored.values())

    def source(request: Request) -> str | None:
        return trust.source(request.client.host if request.client else None)

    @app.post("/suggest", response_model=replies.SuggestReply, responses=_BUSY)
    async def suggest(body: bodies.SuggestBody, request: Request):
        """The list for a prefix, best first."""
        began = time.perf_counter()
        version = engine.version
        history, minutes = await history_of(version, body)
        spent = time.perf_counter() - began
        suggest_request = SuggestRequest(
            prefix=body.prefix,
            history=history,
            minutes=minutes,
            profile=_profile_values(version, body.profile),
            k=body.k,
            within=None if body.deadline_ms is None else body.deadline_ms / 1000 - spent,
        )
        answer = await _unless_disconnected(request, engine.submit(suggest_request))
        if answer is None:
            engine.metrics.unanswered("abandoned")
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        reply = {
            "request_id": trust.request_id(body.prefix, body.user_id or "", source(request)),
            "prefix": body.prefix,
            "suggestions": [
                {"text": text, "score": None if score is None else round(score, 4)}
                for text, score in zip(answer.result.texts, answer.result.scores, strict=True)
            ],
            "level": answer.level,
            "version": answer.version,
            "cached": answer.cached,
            "milliseconds": round(1000 * (time.perf_counter() - began), 2),
            "most_popular": list(engine.popular(suggest_request).result.texts)
            if body.compare
            else None,
            "why": explain(version, suggest_request, answer) if body.why else None,
        }
        if config.log and config.log_text:
            say(f"typed {body.prefix!r} after {list(history)}: {answer.level}")
        return Response(to_json(reply), media_type="application/json")

    @app.post(
        "/feedback",
        response_model=replies.FeedbackReply,
        responses={
            **_BUSY,
            404: _error("The request is not stored yet."),
            409: _error("The event contradicts the stored one."),
            429: _error("Too much feedback from one address; see Retry-After."),
        },
    )
    async def feedback(body: bodies.FeedbackBody, request: Request):
        """Stores the outcome of one request; it is on the disk before the reply."""
        live = None
        if engine.ready:
            _profile_values(engine.version, body.profile)
            live = engine.version.live
        event = Event(**{**body.model_dump(), "query": body.query or "", "timestamp_ms": now_ms()})
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

    @app.get("/users/{user_id:path}", response_model=replies.UserReply)
    async def user(user_id: Annotated[bodies.KnownUser, Path()]):
        """The stored data of a user."""
        events = await histories.read(store.count, user_id)
        history = await histories.read(store.history, user_id, bodies.HISTORY_LENGTH)
        return {"user_id": user_id, "history": list(history), "events": events}

    @app.delete("/users/{user_id:path}", response_model=replies.Deleted, responses=_BUSY)
    async def forget(user_id: Annotated[bodies.KnownUser, Path()]):
        """Deletes a user's data, overwrites it on the disk, and lists what remains."""
        deleted = await asyncio.wrap_future(store.forget(user_id))
        if engine.ready and engine.version.live is not None:
            engine.version.live.forget(user_id)
        remains = _remaining(
            await histories.read(store.exports), engine.version.name if engine.ready else None
        )
        return {"user_id": user_id, "deleted": deleted, "remains": remains}

    @app.get("/health")
    async def health():
        """The process is running."""
        return {"status": "ok"}

    @app.get("/ready", responses=_BUSY)
    async def ready():
        """Requests are answered; 503 while the model is loaded and compiled.

        While `warming`, smaller shapes are still being compiled, and answers take longer. If
        `store` is "slow" or "down", lists are made without stored histories; feedback gets 503.
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

    app.openapi()  # cached now, so that the description does not list HEAD separately
    for route in app.routes:
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # uvicorn omits the body
    return app


def _package_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("onesug_jax")
    return "0"


def _error(text: str) -> dict[str, Any]:
    return {"model": replies.Mistakes, "description": text}


_BUSY: dict[int | str, dict[str, Any]] = {
    503: _error("The queue is full, or no model is loaded; see Retry-After."),
    504: _error("The deadline passed."),
}


def _remaining(exports: Sequence[tuple[str, int]], version: str | None) -> list[dict[str, str]]:
    """Data that a deletion leaves, as `replies.Remaining`; exports without their folder."""
    remaining = [
        {
            "what": f"exported log {os.path.basename(path)} of "
            f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC",
            "until": "its owner deletes it",
        }
        for path, at_ms in exports
    ]
    if version is not None:
        what = "histories and counts in the memory of servers"
        until = "each server has polled the store, within seconds, and rebuilt its counts"
        remaining.append({"what": what, "until": until})
        what = f"model {version}, its log and its counts, and those of earlier versions"
        until = "the next update, which leaves this user out; earlier versions until removed"
        remaining.append({"what": what, "until": until})
    return remaining


def _profile_values(version: ModelVersion, profile: dict[str, str]) -> tuple[str, ...]:
    """Values in the order of the log's columns; an unknown name is a validation error."""
    for name in profile:
        if name not in version.profile:
            have = ", ".join(version.profile) or "none"
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("profile", name), "msg": f"this log has: {have}"}]
            )
    return tuple(profile.get(name, "") for name in version.profile) if profile else ()


async def _unless_disconnected(request: Request, future: Future) -> Answer | None:
    """The answer; if the client disconnects first, cancels the request and returns None."""
    if future.done():
        return future.result()
    answer = asyncio.ensure_future(asyncio.wrap_future(future))
    disconnected = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, disconnected), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        disconnected.cancel()
        answer.cancel()


def _newest_first(history: Sequence[str], minutes: Sequence[float] | None, most: int) -> History:
    """The last `most` distinct queries of a history, newest first, with their ages in minutes."""
    texts = tuple(dict.fromkeys(reversed(history)))[:most]
    latest = dict(zip(history, minutes or (), strict=False))
    return texts, tuple(latest[text] for text in texts) if minutes else ()
