#!/usr/bin/env python
"""What a table of ablations will take on this machine: the lines `launch/ablations.sh` opens with.

    python launch/budget.py --log L --seeds 3 --gin_file=gin_configs/two_cores.gin --rows no_pre dpo

Reckoned from rates that were measured (RATES below), so right within a factor of two or so on other
machines of their kind, and nearer once the first row's own minutes are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
import re
import sys

import jax
import pyarrow.parquet as pq

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from onesug_jax import cli, main  # noqa: E402
from onesug_jax.errors import UserError  # noqa: E402
from onesug_jax.model.config import ModelConfig  # noqa: E402
from onesug_jax.stages import CONFIGURABLES, STAGES  # noqa: E402

# Device -> measured with the model `mini` and gin_configs/two_cores.gin on shoplog_en_small:
# examples a second of pretraining, lists of 1 + 4 a second of rwr, suggestions a second, and
# seconds of all stages before `examples`, cascade included. "cpu" is 2 cores of an AMD EPYC, "gpu"
# an H200.
RATES = {"cpu": (85.0, 30.0, 30.0, 330.0), "gpu": (9500.0, 3000.0, 190.0, 120.0)}
EXAMPLES = 800.0  # rows a second turned into examples: host work, whatever the device
PREFERENCE = ("rwr", "PreferenceConfig", "ListConfig", "RewardConfig")  # these leave pretrain alone


def work(config: ModelConfig) -> float:
    """Multiply-adds a token of a model's layers: how much slower than `mini` it is."""
    attention = 4 * config.d_model * config.num_heads * config.head_dim
    feed = 3 * config.d_model * config.d_ff
    layers = config.encoder_layers * (attention + feed)
    return layers + config.decoder_layers * (2 * attention + feed)


def shares_pretrain(name: str) -> bool:
    """Whether an ablation starts from a model that the full run, or an included row, trained."""
    path = os.path.join(ROOT, "gin_configs", "ablations", f"{name}.gin")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    names = re.findall(r"^(?:\w+/)?(\w+)\.\w+ *=", text, re.MULTILINE)
    return all(name in PREFERENCE for name in names)


def rows_in(log: str | None, simulated: int) -> tuple[int, int]:
    """(rows to train on, rows to score), read off the log; of the simulated log as it is split."""
    if log is None:
        return int(0.9 * simulated), int(0.1 * simulated)
    counts = {}
    for split in ("train", "dev"):
        files = glob.glob(os.path.join(log, f"{split}.parquet"))
        counts[split] = sum(pq.read_metadata(path).num_rows for path in files)
    if not counts["train"] and os.path.isfile(log) and log.endswith(".parquet"):
        rows = pq.read_metadata(log).num_rows
        counts = {"train": int(0.9 * rows), "dev": int(0.1 * rows)}
    return counts["train"] or 100_000, counts["dev"] or 10_000


def budget(words: argparse.Namespace, flags: list[str]) -> str:
    """The budget as text."""
    command = cli.parse(["run", *flags], STAGES, CONFIGURABLES)
    assert isinstance(command, cli.Command), "flags, not --help"
    config = main.read_config(command.gin_files, command.bindings)
    settings = config.settings(["ModelConfig", "pretrain", "rwr", "simulate"])
    settings = {key: config.resolved(value) for key, value in settings.items()}
    sizes = {
        key.removeprefix("ModelConfig."): value
        for key, value in settings.items()
        if key.startswith("ModelConfig.")
    }
    mini = ModelConfig(1, d_model=128, num_heads=4, head_dim=32, d_ff=384)
    mini = dataclasses.replace(mini, encoder_layers=2, decoder_layers=2)
    slower = work(ModelConfig(**{**sizes, "vocab_size": 1})) / work(mini)
    device = "gpu" if jax.default_backend() != "cpu" else "cpu"
    examples, lists, answers, early = RATES[device]
    train, dev = rows_in(words.log, settings["simulate.requests"])

    read = train / EXAMPLES
    pretrain = settings["pretrain.steps"] * settings["pretrain.batch_size"] / examples * slower
    prefer = settings["rwr.steps"] * settings["rwr.batch_size"] / lists * slower
    score = dev / answers * slower
    updated = prefer + score
    anew = [name for name in words.rows if not shares_pretrain(name)]
    shared = [name for name in words.rows if name not in anew]
    first = early + read + pretrain + updated
    each = pretrain + updated + (len(shared) * updated + len(anew) * (read + pretrain + updated))
    alone = early + read + words.seeds * each
    least = early + read + (alone - early - read) / words.jobs
    megabytes = 60 * words.seeds * (1 + len(words.rows)) * slower
    minutes = {"pretrain": pretrain, "rwr": prefer, "lists": score}
    longest = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in minutes.items())
    lines = [
        f"budget on {device} ({jax.device_count()} device, {os.cpu_count()} cores), model "
        f"{config.macro('MODEL')}, {train:,} searches to learn from and {dev:,} to score:",
        f"  full run: {first / 60:.0f} minutes ({longest})",
        f"  with {len(anew)} rows from examples on and {len(shared)} from rwr on, times "
        f"{words.seeds} seeds: {alone / 60:.0f} minutes, {megabytes / 1000:.1f} GB of disk",
    ]
    if words.jobs > 1:
        lines.append(
            f"  {words.jobs} rows at a time: at best {least / 60:.0f} minutes, by how much of the "
            "device and the cores one row leaves idle"
        )
    return "\n".join(lines)


def run() -> int:
    """Prints the budget; 2 and a message for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--anew", action="store_true", help="only name the rows trained anew")
    words, flags = parser.parse_known_args()
    if words.anew:
        print(*(name for name in words.rows if not shares_pretrain(name)))
        return 0
    try:
        print(budget(words, flags))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
