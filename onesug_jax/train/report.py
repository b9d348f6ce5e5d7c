"""Reports of a run: a progress line, `metrics.jsonl`, and TensorBoard events without TensorFlow.

Throughput excludes compiling, evaluating, saving and tracing. Goodput is the share of the time in
steps; idle devices that wait for data reduce it. `share/data`, `share/compile`, .. are the other
shares. Model FLOPs utilisation (MFU) is examples/s * FLOPs per example / (devices * peak FLOP/s).
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

# Metrics that only the files contain; the progress line prints the loss separately.
FILE_ONLY = ("loss", "weight", "grad_norm", "learning_rate")


def _on_progress_line(metric: str) -> bool:
    """Parts of a metric (`accuracy/order_show`) are only in the files."""
    return metric not in FILE_ONLY and "/" not in metric


class Window:
    """Means of the metrics since the last report: a single batch has only one length bucket.

    A metric is divided by the metric `<metric>/count` if there is one, else by the number of steps.
    It is omitted if the count is 0.

    Sums are added in the order of the steps and are part of checkpoints, so a resumed run reports
    the same numbers as an uninterrupted one. Only `sums` and `means` wait for the device.
    """

    def __init__(self, sums: Mapping[str, float] | None = None):
        self._sums = dict(sums or {})
        self._waiting: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds one step's metrics, which are still on the device."""
        self._waiting.append(metrics)

    def sums(self) -> dict[str, float]:
        """Sums so far, and "steps", the number of steps."""
        for metrics in jax.device_get(self._waiting):
            for key, value in {**metrics, "steps": 1}.items():
                self._sums[key] = self._sums.get(key, 0.0) + float(value)
        self._waiting.clear()
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """The means; starts a new window."""
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
    """Progress and metrics of one `fit`. Only process 0 reports.

    Args:
      folder: the stage's folder, for `metrics.jsonl` and `tensorboard/`.
      name, steps: for the progress line.
      start: completed updates; later lines, from a killed run, are dropped.
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
        self._line = 0  # length of the progress line on the terminal
        self._last = (0.0, 0, 0)  # seconds, examples, tokens at the last log
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

        `examples` and `tokens` are totals of this run, without the steps that compiled.
        """
        clock, last = self.clock, self._last
        excluded = clock.spent.keys() - {"data"}
        self._last = (clock.without(*excluded), examples, tokens or 0)
        seconds, new_examples, new_tokens = (
            now - before for now, before in zip(self._last, last, strict=True)
        )
        rates = {}
        if new_examples and seconds > 0:  # otherwise all steps of the window compiled
            rates["examples_per_s"] = new_examples / seconds
            if tokens is not None:
                rates["tokens_per_s"] = new_tokens / seconds
            flops, peak = self._flops
            if flops and peak:
                rates["mfu"] = rates["examples_per_s"] * flops / (peak * self._devices)
        rates |= clock.shares()
        self._record(step, "train", {**metrics, **rates})
        pace = clock.without("compile") / max(step - self._start, 1)
        words = [
            f"{self._name} {step:>{len(str(self._steps))}}/{self._steps}",
            f"loss {metrics['loss']:.4f}",
            *(f"{key} {value:.4g}" for key, value in metrics.items() if _on_progress_line(key)),
        ]
        for unit in ("examples", "tokens"):
            key = f"{unit}_per_s"
            words += [f"{rates[key]:,.0f} {unit}/s"] if key in rates else []
        words += [f"mfu {rates['mfu']:.1%}"] if "mfu" in rates else []
        words += [f"goodput {rates['goodput']:.0%}"]
        words += [f"left {_duration(pace * (self._steps - step))}"]
        self.say("  ".join(words), stay=self._tty and step < self._steps)

    def evaluated(self, step: int, values: Mapping[str, Any], best: bool = False) -> None:
        """Log the evaluation after update `step`: numbers, and `lists` by heading."""
        values = dict(values)
        self._record(step, "evaluate", values, values.pop("lists", {}))
        words = "  ".join(
            f"{key} {value:.4g}" for key, value in values.items() if _on_progress_line(key)
        )
        self.say(f"{self._name} {step}: evaluate  {words}{'  (best so far)' if best else ''}")

    def begin(self, change: Mapping[str, Any] | None) -> None:
        """Print the step at which the run resumes, and its changes (a line of the history)."""
        if self._start:
            self.say(f"{self._name}: resuming from step {self._start} of {self._steps}")
            if change:
                self.say(f"{self._name}: {describe(change)}")

    def gave_up(self, step: int, patience: int, best: Mapping[str, Any] | None) -> None:
        """Print the reason of an early stop."""
        assert best is not None
        self.say(
            f"{self._name}: {patience} evaluations without a better {best['metric']} than "
            f"{best['value']:.4g} at step {best['step']}; stopping at step {step}"
        )

    def say(self, text: str, stay: bool = False) -> None:
        """Print one line; the next one overwrites it if `stay`."""
        if not self._on:
            return
        start = "\r" if self._line else ""
        self._stream.write(start + text.ljust(self._line) + ("" if stay else "\n"))
        self._stream.flush()
        self._line = len(text) if stay else 0

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
        # JSON has no NaN: null stands for it.
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


def _lines_until(path: str, step: int) -> bytes:
    """The complete lines of steps up to `step`; a killed run may leave later and partial lines."""
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
