"""Slow clients of a real server process do not affect other clients."""

import socket
import time

import httpx2 as httpx
import pytest

from onesug_jax.errors import UserError
from onesug_jax.serve.connections import client_of
from onesug_jax.serve.server import ServerConfig
from tests.serve.asking import until
from tests.serve.test_server import Server, raw

HEAD = b"POST /suggest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
TOO_MANY = b"HTTP/1.1 503"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with short deadlines and few connections per client."""
    limits = dict(head_seconds=2.0, body_seconds=1.0, write_seconds=1.0)
    started = Server(
        tmp_path_factory.mktemp("limits"), **limits, client_connections=4, gateways=("127.0.0.9",)
    )
    yield started
    started.process.kill()
    started.process.wait(30)


def send_slowly(server, begun, drop, count=200, source="127.0.0.1"):
    """The reply to a request whose rest is sent in small pieces."""
    where = ("127.0.0.1", server.port)
    with socket.create_connection(where, timeout=30, source_address=(source, 0)) as connection:
        connection.sendall(begun)
        received = b""
        for _ in range(count):
            try:
                connection.sendall(drop)
                connection.settimeout(0.05)
                part = connection.recv(65_536)
            except TimeoutError:
                continue
            except ConnectionError:
                return received
            if not part:
                return received
            received += part
        raise AssertionError("the server did not end the request")


@pytest.mark.long
def test_a_slow_body_is_ended(server):
    found = send_slowly(server, HEAD + b"Content-Length: 50000\r\n\r\n{", b" ")
    assert found.startswith(b"HTTP/1.1 408") and b'"body"' in found
    found = send_slowly(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
    assert found.startswith(b"HTTP/1.1 408")


@pytest.mark.long
def test_a_slow_body_after_a_refusal_is_ended(server):
    """A page of another origin: the connection also ends if the reply was sent before."""
    begun = HEAD + b"Origin: https://evil.example\r\nContent-Length: 50000\r\n\r\n{"
    found = send_slowly(server, begun, b" ")
    assert found.startswith(b"HTTP/1.1 403")
    found = send_slowly(server, begun.replace(b"POST /suggest", b"GET /health"), b" ")
    assert found.startswith(b"HTTP/1.1 403")


@pytest.mark.long
def test_a_client_that_never_reads_is_disconnected(server):
    size = len(httpx.get(f"{server.url}/style.css").content)
    count = 60_000_000 // size // 20
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        asked = b"GET /style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        for _ in range(20):
            connection.setblocking(False)
            try:
                connection.send(asked * count)
            except BlockingIOError:
                break  # the server stops reading, because it has replies to write
        time.sleep(3)
        for number in range(5):
            assert server.suggest(prefix=f"p{number}").status_code == 200
        connection.settimeout(30)
        received = 0
        with pytest.raises(ConnectionResetError):
            while part := connection.recv(1 << 20):
                received += len(part)


def test_connections_of_one_address_are_limited(server):
    where, opened = ("127.0.0.1", server.port), []
    ask = b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"

    def status(source):
        with socket.create_connection(where, timeout=30, source_address=(source, 0)) as connection:
            try:
                connection.sendall(ask)
                return connection.recv(65_536)[:12]
            except ConnectionError:
                return b""

    def hold(source, count):
        for _ in range(count):
            opened.append(socket.create_connection(where, source_address=(source, 0)))
            opened[-1].sendall(b"GET")

    try:
        hold("127.0.0.2", 4)
        until(lambda: status("127.0.0.2") == TOO_MANY)
        assert status("127.0.0.3") == b"HTTP/1.1 200"
        hold("127.0.0.2", 4)  # these get 503
        assert status("127.0.0.2") == b"", "aborted beyond twice the limit"
        hold("127.0.0.9", 10)
        assert status("127.0.0.9") == b"HTTP/1.1 200", "a gateway has no limit"
    finally:
        for one in opened:
            one.close()
    until(lambda: status("127.0.0.2") == b"HTTP/1.1 200")


def test_head_has_the_headers_of_get_and_no_body(server):
    for path in ("/", "/health", "/ready", "/app.js", "/openapi.json"):
        asked = f"HEAD {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
        head, _, body = raw(server, asked).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and body == b"", path
        assert b"content-length: 0" not in head.lower(), path
    assert raw(server, b"HEAD /suggest HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 405"
    )
    with httpx.Client() as client:  # one connection, which a surplus byte would break
        for _ in range(3):
            assert client.head(f"{server.url}/app.js").status_code == 200
            assert client.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "::2", False),
    ],
)
def test_addresses_of_one_client(one, other, same):
    assert (client_of(one) == client_of(other)) == same


@pytest.mark.parametrize("name", ["write_seconds", "client_connections", "head_seconds"])
def test_impossible_limits_are_named(name):
    with pytest.raises(UserError, match=f"ServerConfig.{name} = 0"):
        ServerConfig(**{name: 0})
