"""What a run tells: a progress line, `metrics.jsonl`, TensorBoard event files. Without TensorFlow.

Throughput leaves out compiling, evaluating, saving and tracing. The goodput is the share of all
time that went to steps, so waiting for data, which leaves the devices idle, counts against it too;
`share/data`, `share/compile`, .. say where the rest went. Model FLOPs utilisation is
examples/s * FLOPs an example / (devices * peak FLOP/s), for the FLOPs and peak the caller gives.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax
from etils import epath

from onesug_jax.errors import UserError

# Logged, but not worth a place on the progress line.
QUIET = ("loss", "weight", "grad_norm", "learning_rate")
# What takes time besides steps, and is told even where it took none.
APART = ("data", "compile", "evaluate", "save")


def _loud(metric: str) -> bool:
    """Parts of a metric (`accuracy/order_show`) are for the files alone."""
    return metric not in QUIET and "/" not in metric


class Clock:
    """Seconds since it was made, and how many of them went to something other than steps."""

    def __init__(self, now=time.monotonic):
        self._now = now
        self._start = now()
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Time inside counts as `what`, not as training steps."""
        start = self._now()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + self._now() - start

    def total(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def without(self, *what: str) -> float:
        """Seconds since the start, less those spent on `what`."""
        return self.total() - sum(self.spent.get(name, 0.0) for name in what)

    def shares(self) -> dict[str, float]:
        """Of all seconds since the start: the `goodput`, those in steps, and the `share/..` of all
        else; they add up to 1.
        """
        total = max(self.total(), 1e-9)
        apart = {f"share/{what}": self.spent.get(what, 0.0) / total for what in APART}
        apart |= {f"share/{what}": seconds / total for what, seconds in self.spent.items()}
        return {"goodput": 1 - sum(apart.values()), **apart}


class Window:
    """Means of the metrics since the last report; one batch of one length bucket would mislead.

    A metric with another named `<metric>/count` beside it is divided by that one instead of by the
    number of steps, and left out where the count is 0.

    Adds in the order of the steps, and goes on from the sums a checkpoint kept, so a resumed run
    reports the very numbers of one that never stopped. Reads the device only when asked.
    """

    def __init__(self, sums: Mapping[str, float] | None = None):
        self._sums = dict(sums or {})
        self._waiting: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes one step's metrics, still on the device."""
        self._waiting.append(metrics)

    def sums(self) -> dict[str, float]:
        """Sums so far, and under "steps" their number."""
        for metrics in jax.device_get(self._waiting):
            for key, value in {**metrics, "steps": 1}.items():
                self._sums[key] = self._sums.get(key, 0.0) + float(value)
        self._waiting.clear()
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """The means, after which a new window begins."""
        sums = self.sums()
        steps = sums.pop("steps")
        self._sums.clear()
        means = {}
        for key, value in sums.items():
            count = sums.get(f"{key}/count", steps)
            if not key.endswith("/count") and count:
                means[key] = value / count
        return means


class Report:
    """Progress and metrics of one `fit`. Does nothing on processes other than 0.

    Args:
      folder: the stage's folder; gets `metrics.jsonl` and `tensorboard/`.
      name, steps: for the progress line.
      start: updates already done; later lines, left by a run that was killed, are dropped.
      flops_per_example, peak_flops: of the model, and of one device (FLOP/s), for the utilisation
        of `devices`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        name: str,
        steps: int,
        start: int = 0,
        flops_per_example: float | None = None,
        peak_flops: float | None = None,
        devices: int = 1,
        stream: TextIO | None = None,
        clock: Clock | None = None,
    ):
        self.clock = clock or Clock()
        self._name, self._steps, self._start = name, steps, start
        self._flops, self._devices = (flops_per_example, peak_flops), devices
        self._stream = stream or sys.stdout
        self._tty = self._stream.isatty()
        self._line = 0  # length of the progress line standing on the terminal
        self._seen = (0.0, 0, 0)  # seconds, examples, tokens at the last log
        self._on = jax.process_index() == 0
        if not self._on:
            return
        home = epath.Path(folder)
        with _writing(home):
            home.mkdir(parents=True, exist_ok=True)
            self._jsonl = _Sink(home / "metrics.jsonl", _lines_until(home / "metrics.jsonl", start))
            self._events = _Events(home / "tensorboard", start)
        self._home = home

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def progress(
        self, step: int, metrics: Mapping[str, float], examples: int, tokens: int | None = None
    ) -> None:
        """Log the metrics after update `step`.

        `examples` and `tokens` are counted from the start of this run, over the steps that did not
        compile.
        """
        clock, seen = self.clock, self._seen
        idle = clock.spent.keys() - {"data"}
        self._seen = (clock.without(*idle), examples, tokens or 0)
        seconds, new, read = (now - before for now, before in zip(self._seen, seen, strict=True))
        rates = {}
        if new and seconds > 0:  # otherwise the window was all compiling
            rates["examples_per_s"] = new / seconds
            if tokens is not None:
                rates["tokens_per_s"] = read / seconds
            flops, peak = self._flops
            if flops and peak:
                rates["mfu"] = new / seconds * flops / (peak * self._devices)
        rates |= clock.shares()
        self._record(step, "train", {**metrics, **rates})
        pace = clock.without("compile") / max(step - self._start, 1)
        words = [
            f"{self._name} {step:>{len(str(self._steps))}}/{self._steps}",
            f"loss {metrics['loss']:.4f}",
            *(f"{key} {value:.4g}" for key, value in metrics.items() if _loud(key)),
        ]
        for key, form in (
            ("examples_per_s", "{:,.0f} examples/s"),
            ("tokens_per_s", "{:,.0f} tokens/s"),
        ):
            words += [form.format(rates[key])] if key in rates else []
        words += [f"mfu {rates['mfu']:.1%}"] if "mfu" in rates else []
        words += [f"goodput {rates['goodput']:.0%}"]
        words += [f"left {_duration(pace * (self._steps - step))}"]
        self._print("  ".join(words), stay=self._tty and step < self._steps)

    def evaluated(self, step: int, values: Mapping[str, float], best: bool = False) -> None:
        """Log what the evaluation after update `step` gave."""
        self._record(step, "evaluate", values)
        words = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if _loud(key))
        self._print(f"{self._name} {step}: evaluate  {words}{'  (best so far)' if best else ''}")

    def say(self, text: str) -> None:
        """Print one line for the reader of the console."""
        self._print(text)

    def close(self) -> None:
        """End the progress line and close the files."""
        if not self._on:
            return
        if self._line:
            self._stream.write("\n")
            self._line = 0
        with _writing(self._home):
            self._jsonl.close()
            self._events.close()

    def _record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if not self._on:
            return
        # JSON has no NaN; null says as much.
        plain = {key: float(x) if math.isfinite(x) else None for key, x in values.items()}
        row = {"step": step, "kind": kind, "seconds": round(self.clock.total(), 3), **plain}
        with _writing(self._home):
            self._jsonl.write((json.dumps(row) + "\n").encode())
            self._jsonl.flush()
            self._events.scalars(step, kind, values)

    def _print(self, text: str, stay: bool = False) -> None:
        if not self._on:
            return
        start = "\r" if self._line else ""
        self._stream.write(start + text.ljust(self._line) + ("" if stay else "\n"))
        self._stream.flush()
        self._line = len(text) if stay else 0


class Profile:
    """Traces updates first..last with `jax.profiler` into `folder/profile`; starting and writing
    the trace counts as "profile" on the `clock`.
    """

    def __init__(self, folder: str, steps: tuple[int, int] | None, clock: Clock):
        self._folder, self._steps, self._open = os.path.join(folder, "profile"), steps, False
        self._clock = clock

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first to trace."""
        if self._steps and not self._open and self._steps[0] <= step <= self._steps[1]:
            with self._clock.apart("profile"):
                jax.profiler.start_trace(self._folder)
            self._open = True

    def after(self, step: int, metrics: Any) -> None:
        """End the trace if `step` was the last."""
        if self._open and self._steps and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            with self._clock.apart("profile"):
                jax.profiler.stop_trace()
            if jax.process_index() == 0:
                print(f"trace of the chosen steps: {self._folder}", flush=True)


class _Sink:
    """A file that grows: appended to on a disk, written anew in a bucket, which cannot append."""

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._remote = "://" in os.fspath(path)
        self._content = bytearray(content)
        if not self._remote:
            swap = path.with_name(path.name + ".tmp")  # a kill leaves the old file or the new
            swap.write_bytes(content)
            swap.replace(path)
            self._file = open(path, "ab")

    def write(self, data: bytes) -> None:
        if self._remote:
            self._content += data
        else:
            self._file.write(data)

    def flush(self) -> None:
        if self._remote:
            self._path.write_bytes(bytes(self._content))
        else:
            self._file.flush()

    def close(self) -> None:
        self.flush()
        if not self._remote:
            self._file.close()


class _Events:
    """A TensorBoard event file, from TensorBoard's own record writer and messages."""

    def __init__(self, folder: epath.Path, start: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:019d}.{os.getpid()}.onesug"
        self._records = RecordWriter(_Sink(folder / name))
        self._write(file_version="brain.Event:2")
        # Readers drop what an earlier, killed run logged for steps from here on.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start + 1, session_log=session)
        self._records.flush()

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        value = self._summary.Summary.Value
        rows = [value(tag=f"{kind}/{key}", simple_value=float(x)) for key, x in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=rows))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())


def _lines_until(path: epath.Path, step: int) -> bytes:
    """The whole lines of steps up to `step`; a kill may have left more, and half a one."""
    if step == 0 or not path.exists():
        return b""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return b"".join(kept)


@contextlib.contextmanager
def _writing(home: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{home}: the metrics could not be written: {error}. Make room or mend the folder, "
            "then give the same command again; checkpoints are whole."
        ) from error


def _duration(seconds: float) -> str:
    seconds = max(int(seconds + 0.5), 0)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"
