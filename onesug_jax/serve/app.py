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
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.guards import LOOPBACK, Admission, Gate, Limits, Recorder
from onesug_jax.serve.histories import Histories
from onesug_jax.serve.live import History
from onesug_jax.serve.mistakes import add_errors
from onesug_jax.serve.page import PAGE, add_page
from onesug_jax.serve.requests import Answer, SuggestRequest
from onesug_jax.serve.server import ServerConfig
from onesug_jax.serve.trust import Trust
from onesug_jax.serve.version import ModelVersion
from onesug_jax.serve.why import explain

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
            code: {"model": replies.Mistakes, "description": text}
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
    add_errors(app)
    add_page(app)

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

    @app.post("/suggest", response_model=replies.SuggestReply, responses=_BUSY)
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
            engine.metrics.unanswered("abandoned")
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
        response_model=replies.FeedbackReply,
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

    @app.get("/users/{user_id:path}", response_model=replies.UserReply)
    async def user(user_id: Annotated[bodies.KnownUser, Path()]):
        """What is stored of a user."""
        events = await histories.read(store.count, user_id)
        history = await histories.read(store.history, user_id, bodies.HISTORY_LENGTH)
        return {"user_id": user_id, "history": list(history), "events": events}

    @app.delete("/users/{user_id:path}", response_model=replies.Deleted, responses=_BUSY)
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

    app.openapi()  # made now, so that HEAD is not described on its own
    for route in app.routes:
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # uvicorn leaves the body out
    return app


def _package_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("onesug_jax")
    return "0"


def _wrong(text: str) -> dict[str, Any]:
    return {"model": replies.Mistakes, "description": text}


_BUSY: dict[int | str, dict[str, Any]] = {
    503: _wrong("No place in the queue, or no model yet; Retry-After says when."),
    504: _wrong("The deadline passed."),
}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _remaining(exports: Sequence[tuple[str, int]], version: str | None) -> list[dict[str, str]]:
    """What a deletion leaves, as `replies.Remaining`; of exports the name of the file alone."""
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
