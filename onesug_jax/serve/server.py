"""The HTTP server: address, access, limits and shutdown. The routes are in `app`.

After SIGTERM, the server answers all accepted requests and exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from onesug_jax.errors import UserError
from onesug_jax.serve.connections import limited_protocol
from onesug_jax.serve.engine import Engine
from onesug_jax.serve.feedback import FeedbackStore
from onesug_jax.serve.guards import LOOPBACK

_KEEP_SECONDS = 30  # a connection stays open between two keystrokes of a slow typist


@dataclass(frozen=True)
class ServerConfig:
    """Where the service listens, who may send requests, and limits.

    Attributes:
      host, port: where to listen; an address that other machines reach needs a key.
      api_key_file: a file whose first line is the API key; the environment variable
        ONESUG_API_KEY does the same. A flag would show the key to all users of the machine.
      without_key: listen to other machines without a key, behind a gateway of your own.
      origins: origins whose pages may send requests, besides the page served here.
      hosts: further host names of a server that listens to this machine only.
      body_bytes, body_seconds: maximum size of a body, and its time to arrive.
      head_seconds: maximum time for the head of a request.
      write_seconds: maximum time for a client to read a reply; then its connection is closed.
      connections: most open connections; more get 503 with Retry-After.
      client_connections: most connections of one address (IPv6: of one /64 network).
      gateways: addresses without a limit of their own, because they forward requests of many
        clients, such as your own gateway or this machine.
      grace_seconds: maximum time of a shutdown to answer accepted requests.
      log: log a line for each request: method, route, status, time.
      log_text: with `log`, also log prefix and history. Off by default: they are personal data.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None
    without_key: bool = False
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    body_bytes: int = 65_536
    body_seconds: float = 10.0
    head_seconds: float = 10.0
    write_seconds: float = 10.0
    connections: int = 1000
    client_connections: int = 100
    gateways: tuple[str, ...] = ("127.0.0.1", "::1")
    grace_seconds: int = 30
    log: bool = False
    log_text: bool = False

    def __post_init__(self):
        if not 0 <= self.port < 65_536:
            raise UserError(f"ServerConfig.port = {self.port}: expected 0 to 65535.")
        names = ("body_bytes", "body_seconds", "head_seconds", "write_seconds")
        for name in (*names, "connections", "client_connections"):
            if not getattr(self, name) > 0:
                raise UserError(f"ServerConfig.{name} = {getattr(self, name)}: expected above 0.")

    @property
    def local(self) -> bool:
        """Whether only this machine can send requests."""
        return self.host in LOOPBACK

    def key(self) -> str | None:
        """The API key, if there is one.

        Raises:
          UserError: the file is missing or empty, or other machines need no key.
        """
        key = os.environ.get("ONESUG_API_KEY") or None
        if self.api_key_file is not None:
            try:
                with open(self.api_key_file, encoding="ascii") as file:
                    key = file.readline().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"ServerConfig.api_key_file = {self.api_key_file!r}: expected a file with the "
                    f"key in ASCII; {error}"
                ) from None
            if not key:
                raise UserError(f"ServerConfig.api_key_file: {self.api_key_file} is empty.")
        if key is None and not self.local and not self.without_key:
            raise UserError(
                f"ServerConfig.host = {self.host!r} is open to other machines, but there is no "
                "API key: set ServerConfig.api_key_file or ONESUG_API_KEY, or "
                "ServerConfig.without_key=True behind a gateway of your own."
            )
        return key


def serve(
    engine: Engine,
    store: FeedbackStore,
    config: ServerConfig,
    say: Callable[[str], None] = print,
) -> None:
    """Listens until SIGTERM or SIGINT, then answers the accepted requests and returns.

    It starts the engine: /health answers at once, /ready when the model is compiled.

    Raises:
      UserError: the port is taken, the key is missing, or the first version cannot be loaded.
    """
    from onesug_jax.serve.app import make_app

    app = make_app(engine, store, config, say)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=limited_protocol(
            config.head_seconds,
            config.write_seconds,
            config.connections,
            config.client_connections,
            config.gateways,
        ),
        ws="none",
        log_level="warning",
        log_config=None,  # leave logging unchanged
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_SECONDS,
        timeout_graceful_shutdown=config.grace_seconds,
    )
    try:
        socket = settings.bind_socket()
        socket.listen(settings.backlog)  # early connections wait in the backlog
    except SystemExit:
        raise UserError(
            f"cannot listen on {config.host}:{config.port}; another server may use this port. "
            "Choose another with --gin.ServerConfig.port=PORT"
        ) from None
    server = uvicorn.Server(settings)

    def watch() -> None:
        try:
            engine.wait_ready()
        except BaseException:
            server.should_exit = True

    engine.start()
    threading.Thread(target=watch, name="first version", daemon=True).start()
    host, port = socket.getsockname()[:2]
    say(f"serve: http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
    # After a clean shutdown, uvicorn sends the signal to this process again; ignore it.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
    finally:
        signal.signal(signal.SIGTERM, before)
    if engine.failure is not None:
        raise engine.failure
