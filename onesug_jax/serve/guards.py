"""ASGI middleware: access log, keys, origins, early refusals, limits of bodies.

A request passes `Recorder`, `Gate`, `Admission` and `Limits`, in this order. None of them reads a
user's text. `connections` handles clients that are slow below HTTP.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import types
from collections.abc import Callable, Sequence

from onesug_jax.serve.errors import error_reply, queue_full_reply
from onesug_jax.serve.metrics import Metrics

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = ("/health", "/ready", "/openapi.json")  # without a key


class Recorder:
    """Counts responses, logs a line for each if `say` is given, and adds security headers."""

    def __init__(self, app, metrics: Metrics, say: Callable[[str], None] | None):
        self._app, self._metrics, self._say = app, metrics, say

    async def __call__(self, scope, receive, send):
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def recording(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, receive, recording)
        finally:
            # The route's pattern, because the path may contain a user's name.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.http(route, status)
            if self._say:
                took = 1000 * (time.perf_counter() - began)
                self._say(f"{scope['method'][:16]} {route} {status} {took:.1f} ms")


class Gate:
    """Checks host, origin and API key.

    Args:
      app: the application.
      key: the API key; None: none is needed.
      origins: other allowed origins of pages. hosts: host names of this server; None: any.
      page: paths of the page; they need no key.
    """

    def __init__(
        self,
        app,
        key: str | None,
        origins: Sequence[str],
        hosts: set[str] | None,
        page: Sequence[str],
    ):
        self._app, self._key = app, key.encode() if key else None
        self._origins, self._hosts = set(origins), hosts
        self._open = {*_OPEN, *page}

    async def __call__(self, scope, receive, send):
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        names = {host, host.rpartition(":")[0]}
        if self._hosts is not None and not names & self._hosts:  # for example DNS rebinding
            message = "this server has another name"
            return await error_reply(421, "host", message)(scope, receive, send)
        origin = headers.get(b"origin", b"").decode("latin-1")
        foreign = bool(origin) and origin.partition("://")[2] != host
        if foreign and origin not in self._origins:
            message = "pages of this origin are not allowed; see ServerConfig.origins"
            return await error_reply(403, "origin", message)(scope, receive, send)
        preflight = scope["method"] == "OPTIONS" and foreign
        if not preflight and scope["path"] not in self._open and not self._has_key(headers):
            challenge = {"www-authenticate": "Bearer"}
            message = "expected the API key, as X-API-Key or Authorization: Bearer"
            return await error_reply(401, "x-api-key", message, challenge)(scope, receive, send)
        await self._app(scope, receive, send)

    def _has_key(self, headers) -> bool:
        if self._key is None:
            return True
        key = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not key and scheme.lower() == b"bearer":
            key = token.strip()
        return hmac.compare_digest(key, self._key)


class Limits:
    """Refuses bodies that are too large or too slow.

    Args:
      app: the application.
      body_bytes: maximum size of a body. body_seconds: maximum time for its arrival.
    """

    def __init__(self, app, body_bytes: int, body_seconds: float):
        self._app, self._bytes, self._seconds = app, body_bytes, body_seconds

    async def __call__(self, scope, receive, send):
        """One request; its whole body is read before the application runs."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        close = {"connection": "close"}
        too_large = error_reply(413, "body", f"the body is over {self._bytes:,} bytes", close)
        if length.isdigit() and int(length[:20]) > self._bytes:
            return await too_large(scope, receive, send)
        body, more = b"", True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._bytes:
                        return await too_large(scope, receive, send)
        except TimeoutError:
            message = f"the body took over {self._seconds:g} seconds"
            return await error_reply(408, "body", message, close)(scope, receive, send)
        read = False

        async def replay():
            nonlocal read
            if read:
                return await receive()  # waits until the client disconnects
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


class Admission:
    """Refuses list requests before their body is read, if their answer would be too late. Refusals
    must cost almost nothing: at three times the capacity, two of three requests are refused.

    Args:
      app: the application.
      path: the path of list requests.
      crowded: number of requests inside -> seconds after which to retry; 0: accepted.
    """

    def __init__(self, app, path: str, crowded: Callable[[int], float]):
        self._app, self._crowded, self._inside = app, crowded, 0
        self._route = types.SimpleNamespace(path=path)

    async def __call__(self, scope, receive, send):
        """One request."""
        post = scope["type"] == "http" and scope["method"] == "POST"
        if not post or scope["path"] != self._route.path:
            return await self._app(scope, receive, send)
        if after := self._crowded(self._inside):
            scope["route"] = self._route  # for the access log
            return await queue_full_reply(after)(scope, receive, send)
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
