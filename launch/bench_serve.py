"""The service under load: people who type letter by letter, at shares of its capacity.

  python launch/bench.py --suite serve --work work/quickstart

A server process serves WORK_DIR to this machine only. The load comes from the log: simulated users
type the prefix of each search of its dev (or train) split from the first letter, with the user's
history. They arrive by a Poisson process, and a slow reply does not delay the next letter (open
loop). The capacity is measured first, with enough clients to saturate the service. Latency is
measured at the client, from the letter to the whole reply, also for 503 and 504. A request without
a reply is lost, and there must be none.

The clients share the cores with the server, so under load their times include their own delays. A
separate process of higher priority (as root) sends a few requests per second; its times are those
of the server.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
from people import capacity as capacity_of
from people import load, probed, searches

from onesug_jax.pipeline import workdir

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
        start_new_session=True,  # the scheduler then shares the cores between server and clients
    )
    assert process.stdout
    try:
        match = None
        while match is None:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server ended before it listened")
            match = re.search(r"http://([\d.]+):(\d+)/", line)
        host, port = match[1], int(match[2])
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


# ------------------------------------------------------------------------------------ the table


def _line(name: str, part: list[tuple[int, float, int, str]]) -> str:
    answered = [1000 * took for _, took, status, _ in part if status == 200]
    counts = collections.Counter(level for *_, status, level in part if status == 200)
    codes = collections.Counter(status for _, _, status, _ in part)
    nothing = [float("nan")] * 3
    middle, high, highest = np.percentile(answered, [50, 95, 99]) if answered else nothing
    groups = [sum(counts[level] for level in levels) for levels in (BEST, CHEAPER, ("popular",))]
    shares = " / ".join(f"{count / max(len(part), 1):.0%}" for count in groups)
    other = len(part) - codes[200] - codes[503] - codes[504]
    return (
        f"  {name:<12} {len(part):>7,} {shares:>20} {codes[503]:>8} {codes[504]:>5} {other:>6}"
        f" {middle:>8.1f} {high:>8.1f} {highest:>8.1f}"
    )


def _print_probe(name: str, times: list[tuple[float, int]], status: int) -> float:
    """Prints the probe's times of replies with one status; returns the p99 in ms."""
    took = [1000 * seconds for seconds, code in times if code == status]
    middle, high = np.percentile(took, [50, 99]) if took else (float("nan"), float("nan"))
    print(f"    in the server, {len(took)} {name}: p50 {middle:.1f} ms, p99 {high:.1f} ms")
    return high


def inside(work: str, typed: list[tuple[str, dict[str, list]]]) -> None:
    """Prints the cost of a list without HTTP: as-of features, other Python, and the whole."""
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
    state.requests(asked, time_ms)  # fills the caches of prefixes
    features = state.requests(asked, time_ms)
    made = [Request(one[0], items=items) for one, items in zip(asked, features, strict=True)]
    writing, model.writing = model.writing, None
    print(
        f"\n{len(asked)} requests of 1 to 6 letters; medians, minimum in brackets; us are CPU time"
    )
    alone = time.thread_time  # CPU time of this thread: other load matters less
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
            f"  batch {batch}: as-of features {_each(ask, batch, 1e6)} us, other Python "
            f"{_each(host, batch, 1e6)} us a request; {_each(whole, batch, 1e3)} ms a list, "
            f"{_each(spent, batch, 1e3)} ms of CPU time"
        )
    if writing is None:
        return
    model.writing = writing
    rows = [model.opening([one], model._room(one)).log_probabilities for one in made]
    listed = [np.array([min(np.count_nonzero(one.candidates), 16)]) for one in features]
    leaves = [
        leaves_room(np.asarray(row), count, 16, writing)[0]
        for row, count in zip(rows, listed, strict=True)
    ]
    room = [made[n] for n in np.flatnonzero(leaves)]
    print(f"  {len(room) / len(made):.0%} of the lists leave room for written queries")
    for batch in (1, 8) if room else ():
        groups = [(room * batch)[n : n + batch] for n in range(0, 16 * batch, batch)]
        size = len(features[0].candidates)
        model._write(groups[0], size)  # compiles
        whole = [_seconds(model._write, group, size) for group in groups if group]
        print(f"  writing, batch {batch}: {_each(whole, batch, 1e3)} ms more for such a list")


def _seconds(run: Callable, *args, clock=time.perf_counter) -> float:
    began = clock()
    run(*args)
    return clock() - began


def _each(seconds: list[float], batch: int, unit: float) -> str:
    return f"{unit * np.median(seconds) / batch:.3g} ({unit * min(seconds) / batch:.3g})"


def _without_model(model, group) -> Callable:
    """`model.suggest` of a group with recorded outputs in place of the model."""
    outputs = []
    real = model.opening

    def record(requests, room):
        outputs.append(real(requests, room))
        return outputs[-1]

    model.opening = record
    model.suggest(group)
    del model.opening
    recorded = [
        SimpleNamespace(log_probabilities=np.asarray(one.log_probabilities)) for one in outputs
    ]

    def suggest(group):
        left = iter(recorded)
        model.opening = lambda requests, room: (model.arrays(requests, room), next(left))[1]
        model.suggest(group)
        del model.opening

    return suggest


def serve(work: str, seconds: int) -> None:
    """Prints the tables of one work directory: with all degradation levels, and without cheaper
    ones.
    """
    typed = [(prefix, history) for prefix, history in searches(work) if prefix]
    inside(work, typed)
    with tempfile.TemporaryDirectory() as folder:
        capacity = 0.0
        for levels in ('["full","candidates","beam","popular"]', '["full","beam"]'):
            flags = [f"--gin.EngineConfig.levels={levels}", "--gin.EngineConfig.deadline_ms=500"]
            with server(work, folder, *flags) as (host, port, times):
                print(f"\nlevels {levels}: ready after {times['ready']:.1f} s", end="")
                cache = "compiled in the run before" if capacity else "nothing compiled before"
                print(f", every shape after {times['warm']:.1f} s ({cache})")
                if not capacity:
                    asyncio.run(capacity_of(host, port, typed, 4, 3))  # the first requests are slow
                    capacity = asyncio.run(capacity_of(host, port, typed, 16, max(5, seconds // 2)))
                    print(f"capacity: {capacity:,.0f} letters/s answered to 16 busy clients")
                print(
                    f"  {'':<12} {'letters':>7} {'best/cheaper/popular':>20} {'refused':>8}"
                    f" {'late':>5} {'failed':>6} {'p50 ms':>8} {'p95':>8} {'p99':>8}"
                )
                highest = {}
                for share in (0.5, 1.0, 3.0):
                    rate = share * capacity
                    seed = int(10 * share)
                    with probed(host, port, typed, seconds) as probe:
                        replies = asyncio.run(load(host, port, typed, rate, seconds, seed))
                    answers = replies.answers
                    print(
                        f"  {share:g} x capacity: {len(answers) / seconds:,.0f} letters/s, "
                        f"{replies.lost} lost"
                    )
                    print(_line("all", answers))
                    for name, low, high in KEYSTROKES:
                        part = [one for one in answers if low <= one[0] <= high]
                        print(_line(f"  {name}", part))
                    highest[share] = _print_probe("lists", probe, 200)
                    _print_probe("refusals", probe, 503)
                ratio = highest[3.0] / highest[1.0]
                print(f"  p99 of lists at 3 x capacity: {ratio:.2f} of that at 1 x")
