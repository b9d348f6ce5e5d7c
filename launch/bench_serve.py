"""The service under load: people typing, letter by letter, at shares of what it can do.

  python launch/bench.py --suite serve --work work/quickstart

A server process is started over WORK_DIR and listens to this machine only. The load is the log's
own: each search of its dev (or train) split is typed anew, from the first letter to the prefix it
was chosen at, by people who arrive at random (a Poisson process, open loop: a slow answer delays
nobody's next letter), each with the history of the log. The service's capacity is measured
first, by enough clients to saturate it. Latency is taken here, from the letter to the whole
answer; of 503 and 504, too. A request without any answer is lost, and there must be none.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from onesug_jax.pipeline import workdir

LETTER_SECONDS = 0.25  # between two letters, on average
BEST, CHEAPER = ("full", "beam"), ("candidates",)  # degradation levels
KEYSTROKES = (("1st letter", 1, 1), ("2nd, 3rd", 2, 3), ("4th and on", 4, 99))


# ------------------------------------------------------------------------------------ the server


@contextlib.contextmanager
def server(work: str, folder: str, *flags: str) -> Iterator[tuple[str, int, dict[str, float]]]:
    """A running service: host, port, and seconds until it was ready and until it was warm."""
    command = [sys.executable, "-m", "onesug_jax.main", "serve", f"--gin.WORK_DIR={work}"]
    command += ["--gin.ServerConfig.port=0", f"--gin.FeedbackConfig.path={folder}/events.sqlite"]
    compiled = {"JAX_COMPILATION_CACHE_DIR": os.path.join(folder, "compiled")}
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **compiled},
        start_new_session=True,  # a desktop's scheduler then shares the cores with the clients
    )
    assert process.stdout
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server ended before it listened")
            found = re.search(r"http://([\d.]+):(\d+)/", line)
        host, port = found[1], int(found[2])
        times: dict[str, float] = {}
        while "warm" not in times:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://{host}:{port}/ready", timeout=5) as reply:
                    times.setdefault("ready", time.monotonic() - began)
                    if not json.load(reply)["warming"]:
                        times["warm"] = time.monotonic() - began
            if process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.2)
        yield host, port, times
    finally:
        process.terminate()
        process.wait(60)


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


# ------------------------------------------------------------------------------------ the people


@dataclass
class Seen:
    """What came back: (letter number, seconds, status, level) each; `lost` requests did not."""

    answers: list[tuple[int, float, int, str]] = field(default_factory=list)
    lost: int = 0


def searches(work: str) -> list[tuple[str, dict[str, list]]]:
    """(prefix, the history as a request has it) of the log's searches, in random order."""
    from onesug_jax.logs.history import with_history

    log = os.path.join(workdir.published(work), "log")
    paths = [os.path.join(log, f"{split}.parquet") for split in ("dev", "train")]
    paths = [path for path in paths if os.path.exists(path)]
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


async def _capacity(host: str, port: int, typed, clients: int, seconds: float) -> float:
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


async def _load(host: str, port: int, typed, rate: float, seconds: float, seed: int) -> Seen:
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


# ------------------------------------------------------------------------------------ the table


def _line(name: str, part: list[tuple[int, float, int, str]]) -> str:
    given = [1000 * took for _, took, status, _ in part if status == 200]
    counts = collections.Counter(level for *_, status, level in part if status == 200)
    codes = collections.Counter(status for _, _, status, _ in part)
    middle, high, highest = np.percentile(given, [50, 95, 99]) if given else [float("nan")] * 3
    groups = [sum(counts[level] for level in levels) for levels in (BEST, CHEAPER, ("popular",))]
    shares = " / ".join(f"{count / max(len(part), 1):.0%}" for count in groups)
    other = len(part) - codes[200] - codes[503] - codes[504]
    return (
        f"  {name:<12} {len(part):>7,} {shares:>20} {codes[503]:>8} {codes[504]:>5} {other:>6}"
        f" {middle:>8.1f} {high:>8.1f} {highest:>8.1f}"
    )


def inside(work: str, typed: list[tuple[str, dict[str, list]]]) -> None:
    """What one list costs without HTTP: the as-of ask, other Python of a request, the whole."""
    from onesug_jax import main
    from onesug_jax.decode.both_ways import leaves_room
    from onesug_jax.stages.trained_model import TrainedModel
    from onesug_jax.tasks.features import Request

    folder = workdir.WorkDir(workdir.model_in_use(work))
    context = main.context_of("serve", f"--gin.WORK_DIR={work}")
    opened = TrainedModel(dataclasses.replace(context, work=folder))
    if not opened.spec.items:
        return
    state = opened.after_log()
    model = opened.item_suggester(state, opened.tables_of(state))
    time_ms = state.end_ms
    asked = [
        (prefix[: 1 + n % 6], past["history"][::-1], past["history_minutes"][::-1])
        for n, (prefix, past) in enumerate(itertools.islice(typed, 512))
    ]
    state.requests(asked, time_ms)  # first uses of a prefix fill caches
    found = state.requests(asked, time_ms)
    made = [Request(one[0], items=now) for one, now in zip(asked, found, strict=True)]
    writing, model.writing = model.writing, None
    print(
        f"\n{len(asked)} requests of 1 to 6 letters; medians, quickest in brackets; us are CPU time"
    )
    alone = time.thread_time  # of this thread: other work on the machine matters less
    for batch in (1, 32):
        starts = range(0, len(made) if batch > 1 else min(len(made), 128), batch)
        groups = [made[n : n + batch] for n in starts]
        ask = [_seconds(state.requests, asked[n : n + batch], time_ms, clock=alone) for n in starts]
        for group in groups:
            model.suggest(group)  # compiles
        whole = [_seconds(model.suggest, group) for group in groups]
        spent = [_seconds(model.suggest, group, clock=time.process_time) for group in groups]
        host = [_seconds(_without_model(model, group), group, clock=alone) for group in groups]
        print(
            f"  batch {batch}: as-of ask {_each(ask, batch, 1e6)} us, other Python "
            f"{_each(host, batch, 1e6)} us a request; {_each(whole, batch, 1e3)} ms a list, "
            f"{_each(spent, batch, 1e3)} ms of CPU time"
        )
    if writing is None:
        return
    model.writing = writing
    rows = [model.opening([one], model._room(one)).log_probabilities for one in made]
    listed = [np.array([min(np.count_nonzero(one.candidates), 16)]) for one in found]
    leaves = [
        leaves_room(np.asarray(row), count, 16, writing)[0]
        for row, count in zip(rows, listed, strict=True)
    ]
    room = [made[n] for n in np.flatnonzero(leaves)]
    print(f"  {len(room) / len(made):.0%} of the lists leave room for written queries")
    for batch in (1, 8) if room else ():
        groups = [(room * batch)[n : n + batch] for n in range(0, 16 * batch, batch)]
        size = len(found[0].candidates)
        model._write(groups[0], size)  # compiles
        whole = [_seconds(model._write, group, size) for group in groups if group]
        print(f"  writing, batch {batch}: {_each(whole, batch, 1e3)} ms more for such a list")


def _seconds(run: Callable, *given, clock=time.perf_counter) -> float:
    began = clock()
    run(*given)
    return clock() - began


def _each(seconds: list[float], batch: int, unit: float) -> str:
    return f"{unit * np.median(seconds) / batch:.3g} ({unit * min(seconds) / batch:.3g})"


def _without_model(model, group) -> Callable:
    """`model.suggest` of a group with what the model says of it looked up."""
    said = []
    real = model.opening

    def listening(requests, room):
        said.append(real(requests, room))
        return said[-1]

    model.opening = listening
    model.suggest(group)
    del model.opening
    answers = [SimpleNamespace(log_probabilities=np.asarray(one.log_probabilities)) for one in said]

    def suggest(group):
        left = iter(answers)
        model.opening = lambda requests, room: (model.arrays(requests, room), next(left))[1]
        model.suggest(group)
        del model.opening

    return suggest


def serve(work: str, seconds: int) -> None:
    """The tables of one work directory: with degradation levels, and the full list or nothing."""
    typed = [(prefix, history) for prefix, history in searches(work) if prefix]
    inside(work, typed)
    with tempfile.TemporaryDirectory() as folder:
        capacity = 0.0
        for levels in ('["full","candidates","beam","popular"]', '["full","beam"]'):
            flags = [f"--gin.EngineConfig.levels={levels}", "--gin.EngineConfig.deadline_ms=500"]
            with server(work, folder, *flags) as (host, port, times):
                print(f"\nlevels {levels}: ready after {times['ready']:.1f} s", end="")
                how = "programs of a run before" if capacity else "nothing compiled before"
                print(f", every shape after {times['warm']:.1f} s ({how})")
                if not capacity:
                    asyncio.run(_capacity(host, port, typed, 4, 3))  # the first requests are slow
                    capacity = asyncio.run(_capacity(host, port, typed, 16, max(5, seconds // 2)))
                    print(f"capacity: {capacity:,.0f} letters/s answered to 16 busy clients")
                print(
                    f"  {'':<12} {'letters':>7} {'best/cheaper/popular':>20} {'refused':>8}"
                    f" {'late':>5} {'failed':>6} {'p50 ms':>8} {'p95':>8} {'p99':>8}"
                )
                highest = {}
                for share in (0.5, 1.0, 3.0):
                    rate = share * capacity
                    seen = asyncio.run(_load(host, port, typed, rate, seconds, int(10 * share)))
                    held = len(seen.answers) / seconds
                    print(f"  {share:g} x capacity: {held:,.0f} letters/s, {seen.lost} lost")
                    print(_line("all", seen.answers))
                    for name, low, high in KEYSTROKES:
                        part = [one for one in seen.answers if low <= one[0] <= high]
                        print(_line(f"  {name}", part))
                    given = [1000 * took for _, took, status, _ in seen.answers if status == 200]
                    highest[share] = np.percentile(given, 99) if given else float("nan")
                    refused = [1000 * took for _, took, status, _ in seen.answers if status == 503]
                    if refused:
                        print(f"    refusals: p50 {np.median(refused):.1f} ms, ", end="")
                        print(f"p99 {np.percentile(refused, 99):.1f} ms")
                ratio = highest[3.0] / highest[1.0]
                print(f"  p99 of lists given at 3 x capacity: {ratio:.2f} of that at 1 x")
