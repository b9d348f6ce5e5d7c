"""A real server process: shutdown, kill, slow clients, and errors at the start."""

import concurrent.futures
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest

from onesug_jax import main
from onesug_jax.serve.feedback import FeedbackStore
from tests.serve.asking import until

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Server:
    """`tests.serve.server_process` in its own process."""

    def __init__(self, folder, delay=0.0, **config):
        self.store = str(folder / "events.sqlite")
        settings = [f"{name}={value!r}" for name, value in {"port": 0, **config}.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.server_process", self.store, str(delay), *settings],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(120) and self.process.poll() is None, self.lines
        self.url = re.search(r"http://\S+:\d+", "\n".join(self.lines))[0]
        self.port = int(self.url.rpartition(":")[2])

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            output = " ".join(self.lines)
            if "READY" in output and "http://" in output:
                self._ready.set()
        self._ready.set()

    def stop(self, signum=signal.SIGTERM):
        self.process.send_signal(signum)
        return self.process.wait(60)

    def suggest(self, **body):
        return httpx.post(f"{self.url}/suggest", json=body, timeout=60)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A server for several tests, with little time for slow clients."""
    service = Server(tmp_path_factory.mktemp("impatient"), head_seconds=1.0, body_seconds=1.0)
    yield service
    service.process.kill()
    service.process.wait(30)


@pytest.fixture
def server(tmp_path):
    """`server(delay, **ServerConfig)`: a running server; killed at the end."""
    started = []

    def start(delay=0.0, **config):
        started.append(Server(tmp_path, delay, **config))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(30)


@pytest.mark.long
def test_shutdown_answers_all_accepted_requests(server):
    service = server(delay=2.0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(service.suggest, prefix=f"p{i}") for i in range(4)]
        until(lambda: b"onesug_waiting 3" in httpx.get(f"{service.url}/metrics").content)
        code = service.stop()
        replies = [future.result(60) for future in asked]
    assert [reply.status_code for reply in replies] == [200] * 4
    texts = [reply.json()["suggestions"][0]["text"] for reply in replies]
    assert texts == ["p00", "p10", "p20", "p30"]
    assert code == 0 and service.lines[-1] == "ENDED"
    with pytest.raises(httpx.ConnectError):
        service.suggest(prefix="more")


@pytest.mark.long
def test_ctrl_c_ends_it_quietly(server):
    service = server()
    assert service.suggest(prefix="a").status_code == 200
    assert service.stop(signal.SIGINT) == 0
    assert not any("Traceback" in line for line in service.lines), service.lines


@pytest.mark.long
def test_a_killed_server_loses_no_acknowledged_event(server):
    service = server()
    acknowledged = []

    def send(name):
        with httpx.Client() as client:
            for number in range(100_000):
                body = {"request_id": f"{name}-{number}", "user_id": name, "query": "tent"}
                try:
                    reply = client.post(f"{service.url}/feedback", json=body, timeout=30)
                except httpx.HTTPError:
                    return
                if reply.status_code == 200:
                    acknowledged.append(body["request_id"])

    threads = [threading.Thread(target=send, args=(f"u{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(acknowledged) >= 200, seconds=60)
    service.process.kill()
    for thread in threads:
        thread.join(60)
    store = FeedbackStore(service.store)
    found = {name for (name,) in store._reading.execute("SELECT request_id FROM events")}
    store.close()
    assert found >= set(acknowledged)


def raw(service, data, wait=20.0):
    """The reply to `data` without further bytes; b"" if the server closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=wait) as connection:
        connection.sendall(data)
        received = b""
        try:
            while part := connection.recv(65_536):
                received += part
        except ConnectionResetError:
            pass
        return received


@pytest.mark.long
def test_slow_clients_are_disconnected_and_others_are_not_affected(impatient):
    service = impatient
    head = b"POST /suggest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        began = time.monotonic()
        silent = pool.submit(raw, service, b"")
        heads = [pool.submit(raw, service, head) for _ in range(8)]
        body = head + b"Content-Length: 50\r\n\r\n{"
        bodies = [pool.submit(raw, service, body) for _ in range(8)]
        for number in range(10):
            assert service.suggest(prefix=f"p{number}").status_code == 200
        assert silent.result(30) == b""
        assert all(found.result(30) == b"" for found in heads)
        for found in bodies:
            assert found.result(30).startswith(b"HTTP/1.1 408") and b'"body"' in found.result()
        assert time.monotonic() - began < 15
    assert service.suggest(prefix="a").status_code == 200


@pytest.mark.long
def test_a_slow_head_is_ended(impatient):
    service = impatient
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        with pytest.raises((ConnectionError, TimeoutError)):
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            for number in range(300):
                connection.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.1)
    assert time.monotonic() - began < 15


def test_persistent_connections_take_several_requests(impatient):
    service = impatient
    with httpx.Client() as client:
        for number in range(6):
            body = {"prefix": f"p{number}"}
            assert client.post(f"{service.url}/suggest", json=body).status_code == 200
            time.sleep(0.5)


@pytest.mark.long
def test_too_many_connections_get_retry_after(server):
    service = server(connections=2)
    with (
        socket.create_connection(("127.0.0.1", service.port)),
        socket.create_connection(("127.0.0.1", service.port)),
    ):
        refused = service.suggest(prefix="a")
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["errors"][0]["field"] == "connection"
    until(lambda: service.suggest(prefix="a").status_code == 200)


def test_malformed_and_malicious_requests(impatient):
    service = impatient
    for data, expected in [
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"HTTP/1.1 400"),
        (
            b"GET /../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            b"404",
        ),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.0\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /app.js%00.png HTTP/1.0\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET http://evil.example/ HTTP/1.0\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 4"),
        (
            b"POST /suggest HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 400",
        ),
        (
            b"POST /suggest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n",
            b"HTTP/1.1 413",
        ),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b"HTTP/1.1 4"),
    ]:
        found = raw(service, data)
        assert expected in found.split(b"\r\n")[0], (data[:60], found[:80])
        assert b"root:" not in found
    assert service.suggest(prefix="a").status_code == 200


@pytest.mark.long
def test_a_client_that_disconnects_cancels_its_request(server):
    service = server(delay=1.0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(service.suggest, prefix="first")
        time.sleep(0.3)
        for _ in range(5):  # each typed letter aborts the previous request
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{service.url}/suggest", json={"prefix": "gone"}, timeout=0.1)
        began = time.monotonic()
        assert service.suggest(prefix="last").status_code == 200
        assert time.monotonic() - began < 4, "the aborted requests take no time"
        assert first.result(30).status_code == 200
    assert 'onesug_unanswered_total{why="abandoned"}' in httpx.get(f"{service.url}/metrics").text


def fake_bundle(work):
    """Writes empty files with the names of a model's files."""
    for folder in ("pretrain", "vocab", "mined", "encoder", "semantic_ids", "index"):
        (work / "pretrain" / "bundle" / folder).mkdir(parents=True)
        for name in ("model.json", "a.json", "a.safetensors", "a.npy", "a.npz"):
            (work / "pretrain" / "bundle" / folder / name).write_text("{}")


def test_a_port_that_is_taken_is_named_with_the_fix(tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        work = tmp_path / "work"
        fake_bundle(work)
        words = ["serve", f"--gin.WORK_DIR={work}", f"--gin.ServerConfig.port={port}"]
        assert main.main(words) == 2
    assert "--gin.ServerConfig.port=PORT" in capfd.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(tmp_path, capsys):
    work = tmp_path / "work"
    assert main.main(["serve", f"--gin.WORK_DIR={work}"]) == 2
    assert "no trained model here" in capsys.readouterr().err
    fake_bundle(work)
    words = ["serve", f"--gin.WORK_DIR={work}", "--gin.ServerConfig.port=0"]
    assert main.main(words) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.long
def test_a_user_deleted_at_one_server_is_gone_from_another_of_the_same_store(server):
    one, other = server(), server()

    def learnt(service):
        return "aardvark lamp" in service.suggest(prefix="s", user_id="annabel").text

    def put(service, number, user):
        body = {"request_id": f"r{number}", "user_id": user, "query": "aardvark lamp"}
        reply = httpx.post(f"{service.url}/feedback", json={**body, "prefix": "a"}, timeout=60)
        assert reply.status_code == 200, reply.text

    put(one, 1, "annabel")
    put(other, 2, "bob")
    until(lambda: learnt(one) and learnt(other))
    assert httpx.delete(f"{other.url}/users/annabel", timeout=60).json()["deleted"] == 1
    assert not learnt(one) and not learnt(other), "at once, in both processes"
    assert "aardvark lamp" in one.suggest(prefix="s", user_id="bob").text, "others stay"
    assert httpx.delete(f"{one.url}/users/bob", timeout=60).json()["deleted"] == 1
    put(one, 3, "cid")
    assert one.stop() == other.stop() == 0
    store = FeedbackStore(one.store)
    assert [len(store.history(user, 9)) for user in ("annabel", "bob", "cid")] == [0, 0, 1]
    store.close()
    assert b"annabel" not in pathlib.Path(one.store).read_bytes()
