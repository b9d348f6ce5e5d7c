"""What a run reports: a progress line, `metrics.jsonl`, TensorBoard events without TensorFlow.

Throughput leaves out compiling, evaluating, saving and tracing. The goodput is the share of all
time that went to steps, so waiting for data, which leaves the devices idle, counts against it too;
`share/data`, `share/compile`, .. say where the rest went. Model FLOPs utilisation is
examples/s * FLOPs an example / (devices * peak FLOP/s), for the FLOPs and peak the caller gives.
Where the seconds go is `clock.py`'s, the files' writing `events.py`'s and `sink.py`'s.
"""

import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax

from onesug_jax.train.clock import Clock
from onesug_jax.train.events import EventFile
from onesug_jax.train.history import describe
from onesug_jax.train.sink import growing, writing

# Logged, but not shown on the progress line.
QUIET = ("loss", "weight", "grad_norm", "learning_rate")


def _loud(metric: str) -> bool:
    """Parts of a metric (`accuracy/order_show`) are for the files alone."""
    return metric not in QUIET and "/" not in metric


class Window:
    """Means of the metrics since the last report; one batch of one length bucket would mislead.

    A metric with another named `<metric>/count` beside it is divided by that one instead of by the
    number of steps, and left out where the count is 0.

    Adds in the order of the steps, and goes on from the sums a checkpoint holds, so a resumed run
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
        self._home = folder
        with writing(folder):
            metrics = os.path.join(folder, "metrics.jsonl")
            self._jsonl = growing(metrics, _lines_until(metrics, start))
            self._events = EventFile(os.path.join(folder, "tensorboard"), start)

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

    def evaluated(self, step: int, values: Mapping[str, Any], best: bool = False) -> None:
        """Log what the evaluation after update `step` gave: numbers, and `lists` by heading."""
        values = dict(values)
        self._record(step, "evaluate", values, values.pop("lists", {}))
        words = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if _loud(key))
        self._print(f"{self._name} {step}: evaluate  {words}{'  (best so far)' if best else ''}")

    def begin(self, change: Mapping[str, Any] | None) -> None:
        """Say where the run goes on, and what is different there (a line of the history)."""
        if self._start:
            self.say(f"{self._name}: going on from step {self._start} of {self._steps}")
            if change:
                self.say(f"{self._name}: {describe(change)}")

    def gave_up(self, step: int, patience: int, best: Mapping[str, Any] | None) -> None:
        """Say why the run ends before its last step."""
        assert best is not None
        self.say(
            f"{self._name}: {patience} evaluations without a better {best['metric']} than step "
            f"{best['step']}'s {best['value']:.4g}; stopping at step {step}"
        )

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
        with writing(self._home):
            self._jsonl.close()
            self._events.close()

    def _record(
        self,
        step: int,
        kind: str,
        values: Mapping[str, float],
        lists: Mapping[str, Sequence[str]] = {},
    ) -> None:
        if not self._on:
            return
        # JSON has no NaN; null says as much.
        plain = {key: float(x) if math.isfinite(x) else None for key, x in values.items()}
        row: dict[str, Any] = {
            "step": step,
            "kind": kind,
            "seconds": round(self.clock.total(), 3),
            **plain,
        }
        row |= {"lists": lists} if lists else {}
        with writing(self._home):
            self._jsonl.write((json.dumps(row) + "\n").encode())
            self._jsonl.flush()
            self._events.scalars(step, kind, values)
            if lists:
                self._events.lists(step, kind, lists)

    def _print(self, text: str, stay: bool = False) -> None:
        if not self._on:
            return
        start = "\r" if self._line else ""
        self._stream.write(start + text.ljust(self._line) + ("" if stay else "\n"))
        self._stream.flush()
        self._line = len(text) if stay else 0


def _lines_until(path: str, step: int) -> bytes:
    """The complete lines of steps up to `step`; a kill may have left more, and half a line."""
    if step == 0 or not os.path.exists(path):
        return b""
    lines = []
    for line in pathlib.Path(path).read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return b"".join(lines)


def _duration(seconds: float) -> str:
    seconds = max(int(seconds + 0.5), 0)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"
