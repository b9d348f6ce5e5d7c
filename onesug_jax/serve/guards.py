"""What stands before the application: limits, keys, origins, slow bodies, and the access log.

Plain ASGI, in the order of a request's way in: `Recorder` (counts, one log line, headers for
browsers), `Gate` (which hosts, which origins, which key), `Limits` (how much, how slowly). None of
them reads what a user typed. What is slow below HTTP is met in `connections`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import types
from collections.abc import Callable, Sequence

from onesug_jax.serve.metrics import Metrics
from onesug_jax.serve.mistakes import full, mistake

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
_OPEN = ("/health", "/ready", "/openapi.json")  # these need no key


class Recorder:
    """Counts responses, says one line each where asked to, and tells browsers to be careful."""

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
            # The route's pattern, never the path: that may name a user.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.http(route, status)
            if self._say:
                took = 1000 * (time.perf_counter() - began)
                self._say(f"{scope['method'][:16]} {route} {status} {took:.1f} ms")


class Gate:
    """Lets in who may ask: hosts, origins, and holders of the key.

    Args:
      app: the application.
      key: the API key; None: everybody.
      origins: other origins whose pages may ask. hosts: names the server answers to; None: any.
      page: paths of the page, which hold nothing secret.
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
        if self._hosts is not None and not names & self._hosts:  # DNS rebinding, for one
            return await mistake(421, "host", "this server has another name")(scope, receive, send)
        origin = headers.get(b"origin", b"").decode("latin-1")
        foreign = bool(origin) and origin.partition("://")[2] != host
        if foreign and origin not in self._origins:
            message = "pages of this origin may not ask; see ServerConfig.origins"
            return await mistake(403, "origin", message)(scope, receive, send)
        preflight = scope["method"] == "OPTIONS" and foreign
        if not preflight and scope["path"] not in self._open and not self._has_key(headers):
            challenge = {"www-authenticate": "Bearer"}
            message = "expected the API key, as X-API-Key or Authorization: Bearer"
            return await mistake(401, "x-api-key", message, challenge)(scope, receive, send)
        await self._app(scope, receive, send)

    def _has_key(self, headers) -> bool:
        if self._key is None:
            return True
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not given and scheme.lower() == b"bearer":
            given = token.strip()
        return hmac.compare_digest(given, self._key)


class Limits:
    """Ends requests whose body is too large, or comes too slowly.

    Args:
      app: the application.
      body_bytes: the largest body. body_seconds: the longest a body may take to arrive.
    """

    def __init__(self, app, body_bytes: int, body_seconds: float):
        self._app, self._bytes, self._seconds = app, body_bytes, body_seconds

    async def __call__(self, scope, receive, send):
        """One request: its body is read whole before the application sees it."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return await self._app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        close = {"connection": "close"}
        too_large = mistake(413, "body", f"the body is over {self._bytes:,} bytes", close)
        if announced.isdigit() and int(announced[:20]) > self._bytes:
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
            return await mistake(408, "body", message, close)(scope, receive, send)
        read = False

        async def again():
            nonlocal read
            if read:
                return await receive()  # waits for the client to go
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


class Admission:
    """Turns lists away before anything of a request is read, where they would come too late anyway:
    under three times the load that can be answered, two of three requests must cost nearly nothing.

    Args:
      app: the application.
      path: where lists are asked for.
      crowded: given how many requests are inside, seconds after which to ask again; 0: come in.
    """

    def __init__(self, app, path: str, crowded: Callable[[int], float]):
        self._app, self._crowded, self._inside = app, crowded, 0
        self._route = types.SimpleNamespace(path=path)

    async def __call__(self, scope, receive, send):
        """One request."""
        asked = scope["type"] == "http" and scope["method"] == "POST"
        if not asked or scope["path"] != self._route.path:
            return await self._app(scope, receive, send)
        if after := self._crowded(self._inside):
            scope["route"] = self._route  # for the access log
            return await full(after)(scope, receive, send)
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
