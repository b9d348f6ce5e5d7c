"""Limits of connections: time for heads and for reading replies, connections of one client.

uvicorn's HTTP/1.1, with deadlines for the head of each request and for reading a reply, and with a
limit of connections for each address. Connections over a limit get 503 and Retry-After.
`guards.Limits` has the deadline of bodies.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
from collections.abc import Collection

from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_MANY = JSONResponse(
    {"errors": [{"field": "connection", "message": "too many connections are open"}]},
    503,
    {"retry-after": "1", "connection": "close"},
)


def client_of(address: str) -> str:
    """The client of an address: for IPv6 the /64 network, which usually belongs to one client."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip) if ip.is_loopback else str(ipaddress.ip_network((ip, 64), strict=False))


def limited_protocol(
    head_seconds: float,
    write_seconds: float,
    connections: int,
    client_connections: int,
    gateways: Collection[str],
) -> type[H11Protocol]:
    """The protocol class of one server.

    Args:
      head_seconds: time for the head of a request. write_seconds: time to read a reply.
      connections: most open connections.
      client_connections: most of one client; beyond twice as many, connections are aborted.
      gateways: addresses without a limit of their own.
    """
    unlimited = {client_of(address) for address in gateways}
    open_of: collections.Counter[str] = collections.Counter()

    class LimitedProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _client = ""

        def connection_made(self, transport):
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # paused until the client has read everything
            self._client = client_of(self.client[0]) if self.client else ""
            open_of[self._client] += 1
            limited = self._client not in unlimited
            if limited and open_of[self._client] > 2 * client_connections:
                transport.abort()
            elif len(self.connections) > connections or (
                limited and open_of[self._client] > client_connections
            ):
                self.app = _TOO_MANY
            self._start_head_timer()

        def data_received(self, data):
            before = self.cycle
            super().data_received(data)
            begun = self.cycle is not before
            answering = self.cycle is not None and not self.cycle.response_complete
            if begun or answering:
                self._stop_head_timer()
            elif self._head_timer is None:
                self._start_head_timer()

        def connection_lost(self, exc):
            self._stop_head_timer()
            self._stop_write_timer()
            open_of[self._client] -= 1
            if not open_of[self._client]:
                del open_of[self._client]
            super().connection_lost(exc)

        def pause_writing(self):
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self):
            self._stop_write_timer()
            super().resume_writing()

        def _start_head_timer(self):
            self._head_timer = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_head_timer(self):
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _stop_write_timer(self):
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return LimitedProtocol
