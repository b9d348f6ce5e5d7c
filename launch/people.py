"""People who type, for the bench of the service: open load, busy clients, and one that looks."""

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

LETTER_SECONDS = 0.25  # between two letters, on average
PROBES, PROBE_SECONDS = 8, 0.2  # its connections, and seconds between two letters of one


class Connections:
    """Persistent connections to one server; as many as requests are under way."""

    def __init__(self, host: str, port: int):
        self._where = (host, port)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: dict) -> tuple[int, dict]:
        """Status and reply."""
        reused = bool(self._free)
        reader, writer = self._free.pop() if reused else await asyncio.open_connection(*self._where)
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._where[0]}:{self._where[1]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # A reused connection may have been closed just before: every client asks anew.
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
class Seen:
    """What came back: (letter number, seconds, status, level) each; `lost` requests did not."""

    answers: list[tuple[int, float, int, str]] = field(default_factory=list)
    lost: int = 0


def searches(work: str) -> list[tuple[str, dict[str, list]]]:
    """(prefix, the history as a request has it) of the log's searches, in random order."""
    from onesug_jax.logs.history import with_history
    from onesug_jax.pipeline import workdir

    log = os.path.join(workdir.published(work), "log")
    paths = [os.path.join(log, f"{split}.parquet") for split in ("dev", "train")]
    paths = [path for path in paths if os.path.exists(path)]
    if not paths:
        raise SystemExit(f"{log}: expected a log; name a WORK_DIR that `run` has filled: --work W")
    rows = with_history(paths, keep=paths[0]).read_all().slice(0, 20_000)
    rows = rows.select(["prefix", "recent", "recent_minutes"]).to_pylist()
    random.Random(0).shuffle(rows)
    names = {"history": "recent", "history_minutes": "recent_minutes"}
    return [(row["prefix"], {n: row[name][::-1] for n, name in names.items()}) for row in rows]


async def _letter(
    connections: Connections, seen: Seen, prefix: str, history: dict[str, list]
) -> None:
    began = time.perf_counter()
    try:
        status, reply = await connections.post("/suggest", {"prefix": prefix, **history})
    except (OSError, asyncio.IncompleteReadError, ValueError):
        seen.lost += 1
        return
    took = time.perf_counter() - began
    seen.answers.append((len(prefix), took, status, reply.get("level", "")))


async def capacity(host: str, port: int, typed, clients: int, seconds: float) -> float:
    """Letters a second that `clients` get answered who ask again at once."""
    connections, seen = Connections(host, port), Seen()
    letters = [(p[:n], history) for p, history in typed for n in range(1, len(p) + 1)]
    random.Random(1).shuffle(letters)
    upcoming, end = itertools.cycle(letters), time.monotonic() + seconds

    async def client():
        while time.monotonic() < end:
            await _letter(connections, seen, *next(upcoming))
            if seen.answers and seen.answers[-1][2] == 503:
                await asyncio.sleep(LETTER_SECONDS)

    began = time.monotonic()
    await asyncio.gather(*[client() for _ in range(clients)])
    given = sum(status == 200 for *_, status, _ in seen.answers)
    return given / (time.monotonic() - began)


async def load(host: str, port: int, typed, rate: float, seconds: float, seed: int) -> Seen:
    """People who type `rate` letters a second in all, for so long."""
    connections, seen, chance = Connections(host, port), Seen(), random.Random(seed)
    letters = sum(len(prefix) for prefix, _ in typed) / len(typed)
    under_way: set[asyncio.Task] = set()

    async def person(prefix: str, history: dict[str, list]) -> None:
        asked = []
        for n in range(1, len(prefix) + 1):
            asked.append(asyncio.create_task(_letter(connections, seen, prefix[:n], history)))
            await asyncio.sleep(chance.expovariate(1 / LETTER_SECONDS))
        await asyncio.gather(*asked)

    upcoming = itertools.cycle(chance.sample(typed, len(typed)))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        task = asyncio.create_task(person(*next(upcoming)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        await asyncio.sleep(chance.expovariate(rate / letters))
    await asyncio.gather(*under_way)
    return seen


def _probe(host: str, port: int, typed, seconds: float) -> list[tuple[float, int]]:
    """(seconds, status) of letters; run in a process of its own."""
    with contextlib.suppress(OSError):  # not root: the scheduler's turns are then measured too
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    found: list[tuple[float, int]] = []

    def look(seed: int) -> None:
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
            found.append((time.perf_counter() - began, reply.status))

    looking = [threading.Thread(target=look, args=(seed,)) for seed in range(PROBES)]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    return found


@contextlib.contextmanager
def probed(host: str, port: int, typed, seconds: float) -> Iterator[list[tuple[float, int]]]:
    """What the process of high priority saw meanwhile: (seconds, status) of each letter."""
    command = [sys.executable, __file__, host, str(port), str(seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(typed[:1000]))
    process.stdin.close()
    process.stdout.readline()  # it has begun
    found: list[tuple[float, int]] = []
    yield found
    found += json.loads(process.stdout.read())
    process.wait()


if __name__ == "__main__":
    searched = json.load(sys.stdin)
    print("begins", flush=True)
    print(json.dumps(_probe(sys.argv[1], int(sys.argv[2]), searched, float(sys.argv[3]))))
