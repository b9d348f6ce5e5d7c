"""The HTTP server: where it listens, who may ask and how much; and how it ends.

SIGTERM ends it after everything that was accepted has been answered. What is asked, and what is
answered, stands in `app`.
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
from onesug_jax.serve.connections import patient
from onesug_jax.serve.engine import Engine
from onesug_jax.serve.feedback import FeedbackStore
from onesug_jax.serve.guards import LOOPBACK

_KEEP_SECONDS = 30  # a connection stays open between two letters of a slow typist


@dataclass(frozen=True)
class ServerConfig:
    """Where the service listens, who may ask, and how much.

    Attributes:
      host, port: where to listen; others than this machine only with a key.
      api_key_file: a file whose first line is the key that requests must carry; the environment
        variable ONESUG_API_KEY does the same. A flag would show it to everybody on the machine.
      without_key: listen to other machines without a key, behind a gateway of your own.
      origins: origins whose pages may ask, besides the page served here.
      hosts: names the server answers to, where it listens to this machine only.
      body_bytes, body_seconds: the largest body, and the longest it may take to arrive.
      head_seconds: the longest the head of a request may take.
      write_seconds: the longest a client may take to read what it is sent; then it is cut off.
      connections: most open connections; more get 503, with Retry-After.
      client_connections: most of one address (of IPv6: of one network of 64 bits).
      gateways: addresses that speak for many clients, and have as many connections as there are:
        your own gateway, which knows its clients; this machine is among them.
      grace_seconds: how long the end waits for what was accepted.
      log: a line a request: method, route, status, time.
      log_text: with `log`, also what was typed. Off unless asked for: it is personal.
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
        """Whether only this machine can ask."""
        return self.host in LOOPBACK

    def key(self) -> str | None:
        """The API key, if there is one.

        Raises:
          UserError: the file is missing or empty, or others may ask without any key.
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
                f"ServerConfig.host = {self.host!r} lets other machines ask, and there is no API "
                "key: set ServerConfig.api_key_file or ONESUG_API_KEY, or "
                "ServerConfig.without_key=True behind a gateway of your own."
            )
        return key


def serve(
    engine: Engine,
    store: FeedbackStore,
    config: ServerConfig,
    say: Callable[[str], None] = print,
) -> None:
    """Listens until SIGTERM or SIGINT, then answers what was accepted and ends.

    The engine is started here: /health answers at once, /ready when the model is compiled.

    Raises:
      UserError: the port is taken, the key is missing, or the first version cannot be loaded.
    """
    from onesug_jax.serve.app import make_app

    app = make_app(engine, store, config, say)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=patient(
            config.head_seconds,
            config.write_seconds,
            config.connections,
            config.client_connections,
            config.gateways,
        ),
        ws="none",
        log_level="warning",
        log_config=None,  # logging is left as it is
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_SECONDS,
        timeout_graceful_shutdown=config.grace_seconds,
    )
    try:
        socket = settings.bind_socket()
        socket.listen(settings.backlog)  # who comes early waits a moment
    except SystemExit:
        raise UserError(
            f"{config.host}:{config.port} cannot be listened on: is another server there? Choose "
            "another with --gin.ServerConfig.port=PORT"
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
    # uvicorn sends itself the signal once more when it has ended well: that is no reason to die.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
    finally:
        signal.signal(signal.SIGTERM, before)
    if engine.failure is not None:
        raise engine.failure
