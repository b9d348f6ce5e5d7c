"""Simulated users who type, for bench_serve.py: open load, busy clients, and a probe."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

LETTER_SECONDS = 0.25  # mean time between two letters
PROBES, PROBE_SECONDS = 8, 0.2  # connections of the probe, and mean time between their requests


class Connections:
    """Persistent connections to one server; a new one opens if all are busy."""

    def __init__(self, host: str, port: int):
        self._where = (host, port)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: dict) -> tuple[int, dict]:
        """The status and the reply."""
        reused = bool(self._free)
        reader, writer = self._free.pop() if reused else await asyncio.open_connection(*self._where)
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._where[0]}:{self._where[1]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # The server may have just closed a reused connection; clients then retry.
            begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if not reused or begun:
                raise
            return await self.post(path, body)
        lines = answer.decode("latin-1").split("\r\n")
        length = next(int(x.split(":")[1]) for x in lines if x.lower().startswith("content-length"))
        reply = json.loads(await reader.readexactly(length))
        self._free.append((reader, writer))
        return int(lines[0].split()[1]), reply


@dataclass
class Replies:
    """The replies, each (letter number, seconds, status, level), and the number of lost ones."""

    answers: list[tuple[int, float, int, str]] = field(default_factory=list)
    lost: int = 0


def searches(work: str) -> list[tuple[str, dict[str, list]]]:
    """(prefix, history fields of a request) of the log's searches, in random order."""
    from onesug_jax.logs.history import with_history
    from onesug_jax.pipeline import workdir

    log = os.path.join(workdir.published(work), "log")
    paths = [os.path.join(log, f"{split}.parquet") for split in ("dev", "train")]
    paths = [path for path in paths if os.path.exists(path)]
    if not paths:
        raise SystemExit(f"{log}: expected a log; name a WORK_DIR made by `run`: --work WORK_DIR")
    rows = with_history(paths, keep=paths[0]).read_all().slice(0, 20_000)
    rows = rows.select(["prefix", "recent", "recent_minutes"]).to_pylist()
    random.Random(0).shuffle(rows)
    names = {"history": "recent", "history_minutes": "recent_minutes"}
    return [(row["prefix"], {n: row[name][::-1] for n, name in names.items()}) for row in rows]


async def _letter(
    connections: Connections, replies: Replies, prefix: str, history: dict[str, list]
) -> None:
    began = time.perf_counter()
    try:
        status, reply = await connections.post("/suggest", {"prefix": prefix, **history})
    except (OSError, asyncio.IncompleteReadError, ValueError):
        replies.lost += 1
        return
    took = time.perf_counter() - began
    replies.answers.append((len(prefix), took, status, reply.get("level", "")))


async def capacity(host: str, port: int, typed, clients: int, seconds: float) -> float:
    """Answered letters per second of `clients` that send the next request at once."""
    connections, replies = Connections(host, port), Replies()
    letters = [(p[:n], history) for p, history in typed for n in range(1, len(p) + 1)]
    random.Random(1).shuffle(letters)
    upcoming, end = itertools.cycle(letters), time.monotonic() + seconds

    async def client():
        while time.monotonic() < end:
            await _letter(connections, replies, *next(upcoming))
            if replies.answers and replies.answers[-1][2] == 503:
                await asyncio.sleep(LETTER_SECONDS)

    began = time.monotonic()
    await asyncio.gather(*[client() for _ in range(clients)])
    given = sum(status == 200 for *_, status, _ in replies.answers)
    return given / (time.monotonic() - began)


async def load(host: str, port: int, typed, rate: float, seconds: float, seed: int) -> Replies:
    """Simulates people who type `rate` letters per second in total."""
    connections, replies, chance = Connections(host, port), Replies(), random.Random(seed)
    letters = sum(len(prefix) for prefix, _ in typed) / len(typed)
    tasks: set[asyncio.Task] = set()

    async def person(prefix: str, history: dict[str, list]) -> None:
        requests = []
        for n in range(1, len(prefix) + 1):
            requests.append(asyncio.create_task(_letter(connections, replies, prefix[:n], history)))
            await asyncio.sleep(chance.expovariate(1 / LETTER_SECONDS))
        await asyncio.gather(*requests)

    upcoming = itertools.cycle(chance.sample(typed, len(typed)))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        task = asyncio.create_task(person(*next(upcoming)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(chance.expovariate(rate / letters))
    await asyncio.gather(*tasks)
    return replies


def _probe(host: str, port: int, typed, seconds: float) -> list[tuple[float, int]]:
    """(seconds, status) of requests; runs in a separate process."""
    with contextlib.suppress(OSError):  # without root, scheduling delays are measured too
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    times: list[tuple[float, int]] = []

    def send(seed: int) -> None:
        chance, end = random.Random(seed), time.monotonic() + seconds
        connection = http.client.HTTPConnection(host, port)
        while time.monotonic() < end:
            time.sleep(chance.expovariate(1 / PROBE_SECONDS))
            prefix, history = chance.choice(typed)
            body = json.dumps({"prefix": prefix[: chance.randint(1, len(prefix))], **history})
            began = time.perf_counter()
            connection.request("POST", "/suggest", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            times.append((time.perf_counter() - began, reply.status))

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(PROBES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


@contextlib.contextmanager
def probed(host: str, port: int, typed, seconds: float) -> Iterator[list[tuple[float, int]]]:
    """Runs the high-priority probe meanwhile: (seconds, status) of its requests."""
    command = [sys.executable, __file__, host, str(port), str(seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(typed[:1000]))
    process.stdin.close()
    process.stdout.readline()  # it has begun
    times: list[tuple[float, int]] = []
    yield times
    times += json.loads(process.stdout.read())
    process.wait()


if __name__ == "__main__":
    searched = json.load(sys.stdin)
    print("begins", flush=True)
    print(json.dumps(_probe(sys.argv[1], int(sys.argv[2]), searched, float(sys.argv[3]))))
