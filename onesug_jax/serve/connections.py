"""Connections of clients that take their time: deadlines of heads and answers, places of a client.

HTTP/1.1 by uvicorn, and in addition: a client has so many seconds for the head of each request, and
to take an answer that it is sent; and one address has so many places, so that it cannot take them
all. Who finds no place gets 503 and Retry-After. `guards.Limits` has the deadline of bodies.
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
    """Who is at an address: of IPv6 the network of 64 bits, which one client has for itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found) if found.is_loopback else str(ipaddress.ip_network((found, 64), strict=False))


def patient(
    head_seconds: float,
    write_seconds: float,
    connections: int,
    client_connections: int,
    gateways: Collection[str],
) -> type[H11Protocol]:
    """The protocol of one server.

    Args:
      head_seconds: for the head of a request. write_seconds: for what was sent to be taken.
      connections: most open ones. client_connections: most of one client; of twice as many and
        more not even the head is read.
      gateways: addresses that speak for many clients, which have no places of their own.
    """
    unlimited = {client_of(address) for address in gateways}
    held: collections.Counter[str] = collections.Counter()

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None  # of the head
        _taking: asyncio.TimerHandle | None = None  # of the answer
        _place = ""

        def connection_made(self, transport):
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # paused until all of it has been taken
            self._place = client_of(self.client[0]) if self.client else ""
            held[self._place] += 1
            limited = self._place not in unlimited
            if limited and held[self._place] > 2 * client_connections:
                transport.abort()
            elif len(self.connections) > connections or (
                limited and held[self._place] > client_connections
            ):
                self.app = _TOO_MANY
            self._expect()

        def data_received(self, data):
            before = self.cycle
            super().data_received(data)
            begun = self.cycle is not before
            answering = self.cycle is not None and not self.cycle.response_complete
            if begun or answering:
                self._stop()
            elif self._timer is None:
                self._expect()

        def connection_lost(self, exc):
            self._stop()
            self._taken()
            held[self._place] -= 1
            if not held[self._place]:
                del held[self._place]
            super().connection_lost(exc)

        def pause_writing(self):
            super().pause_writing()
            if self._taking is None:
                self._taking = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self):
            self._taken()
            super().resume_writing()

        def _expect(self):
            self._timer = self.loop.call_later(head_seconds, self.transport.close)

        def _stop(self):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _taken(self):
            if self._taking is not None:
                self._taking.cancel()
                self._taking = None

    return Patient
