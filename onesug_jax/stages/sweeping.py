"""The stage that trains a work directory again with other settings, one run per combination.

    sweep --gin.WORK_DIR=work/mine --set pretrain.steps=500,1000 --set PreferenceConfig.beta=0.1,0.5

Each run has its own work directory, WORK_DIR/sweep/NAME, and its own process of `run`. It links the
finished stages of WORK_DIR before the first one that depends on the settings, and runs the rest.
After an interruption the same command continues; a finished run is skipped.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, link_tree
from onesug_jax.pipeline.spec import PROGRAM, Context
from onesug_jax.pipeline.workdir import CONFIG, FOLDERS, Manifest, finished
from onesug_jax.stages import comparing

if TYPE_CHECKING:
    from onesug_jax.evaluate.runs import Row

Setting = tuple[str, tuple[str, ...]]  # name, its values as written on the command line
FOLDER, TABLE, PLOT = "sweep", "table.txt", "sweep.png"
_SHARED = ("LOG", "WORK_DIR", "MESH")  # the same for all runs
_MOST = 100  # runs of one sweep


def sweep(context: Context) -> int:
    """Trains and scores every combination, and prints and plots the scores beside WORK_DIR's.

    Raises:
      UserError: WORK_DIR was not evaluated, or a run failed.
    """
    home, settings = context.home.path, context.options.set
    runs = _runs(settings)
    folders = []
    for number, (name, bindings) in enumerate(runs.items(), 1):
        folder = os.path.join(home, FOLDER, name)
        print(f"\n== run {number} of {len(runs)}: {name}", flush=True)
        _prepare(home, folder, bindings)
        _train(folder, bindings)
        folders.append(folder)
    table, rows = comparing.side_by_side([home, *folders], context.options.report)
    print("\n" + table)
    with atomic_write(context.home.join(FOLDER, TABLE)) as out:
        out.write((table + "\n").encode())
    path = _plot(settings, rows[-len(runs) :], context.home.join(FOLDER, PLOT))
    print(f"\nwritten: {context.home.join(FOLDER, TABLE)}, {path}")
    return 0


def check(context: Context) -> None:
    """Raises UserError for settings that cannot be swept; `main` checks their values."""
    if context.mirror:
        raise UserError(
            f"sweep: its runs link the files of WORK_DIR, found {context.mirror.url}; "
            "give a WORK_DIR on a disk"
        )
    settings: Sequence[Setting] = context.options.set or ()
    names = [name for name, _ in settings]
    if not names:
        raise UserError("sweep: expected --set NAME=VALUE,VALUE, for one setting or more")
    for name in names:
        if name in _SHARED or names.count(name) > 1:
            why = "all runs share it" if name in _SHARED else "it is given twice"
            raise UserError(f"sweep --set {name}: {why}; leave it out")
    given = sorted(context.given - {"WORK_DIR"})
    if given:
        raise UserError(
            f"sweep: {', '.join(given)} would differ from {context.home.path}, which the runs "
            f"start from. Set it there by `{PROGRAM} run`, or sweep it with --set"
        )
    count = math.prod(len(values) for _, values in settings)
    if count > _MOST:
        raise UserError(f"sweep: {count:,} runs are over {_MOST}; give fewer values")
    if len(_runs(settings)) < count:
        raise UserError("sweep: two of the runs would have one folder; write their values alike")
    comparing.read(context.home.path, context.options.report)


def describe(context: Context) -> str:
    """The folders of the planned runs."""
    return "\n".join(f"  {os.path.join(FOLDER, name)}" for name in _runs(context.options.set))


def values_of(text: str) -> Setting:
    """The name and the values in `NAME=VALUE,VALUE`; a value in brackets may contain commas.

    Raises:
      argparse.ArgumentTypeError: there is no name or no value.
    """
    name, _, rest = text.partition("=")
    name, values = name.strip(), tuple(_split(rest))
    if not name or not all(values):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE,VALUE, found {text!r}")
    return name, tuple(dict.fromkeys(values))


def bindings_of(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """All (name, value) of a sweep, for the checks in `main`."""
    for name, values in getattr(options, "set", None) or ():
        for value in values:
            yield name, value


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def _runs(settings: Sequence[Setting]) -> dict[str, dict[str, str]]:
    """Folder name of each combination -> {setting: value}."""
    names = [name for name, _ in settings]
    combinations = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(values for _, values in settings))
    ]
    return {_name(bindings): bindings for bindings in combinations}


def _name(bindings: Mapping[str, str]) -> str:
    """The folder of a run: `steps=500 beta=0.1` as `steps=500,beta=0.1`."""
    short = [name.rpartition(".")[2] for name in bindings]
    parts = [
        f"{last if short.count(last) == 1 else name}={value}"
        for last, (name, value) in zip(short, bindings.items(), strict=True)
    ]
    return "".join(c if c.isalnum() or c in "=,._-" else "_" for c in ",".join(parts))


def _first_changed(home: str, names: Sequence[str]) -> int:
    """The position in FOLDERS of the first stage that depends on one of these settings."""
    manifests = [Manifest.read(os.path.join(home, folder)) for folder in FOLDERS]
    positions = [len(FOLDERS)]
    for name in names:
        if name.isupper():  # a macro: STEPS, MODEL, SEED ..
            positions.append(FOLDERS.index("pretrain"))
        scope = name.split("/")[0]
        for position, made in enumerate(manifests):
            if made is not None and (name in made.settings or made.stage == scope):
                positions.append(position)
    return min(positions)


def _prepare(home: str, folder: str, bindings: Mapping[str, str]) -> None:
    """Makes the work directory of a run, with links to the stages that it shares with WORK_DIR."""
    if os.path.isdir(folder):
        return
    making = folder + ".making"
    shutil.rmtree(making, ignore_errors=True)
    os.makedirs(making)
    for name in FOLDERS[: _first_changed(home, list(bindings))]:
        if finished(os.path.join(home, name)) and name != "report":
            link_tree(os.path.join(home, name), os.path.join(making, name))
    shutil.copyfile(os.path.join(home, CONFIG), os.path.join(making, CONFIG))
    os.rename(making, folder)


def _train(folder: str, bindings: Mapping[str, str]) -> None:
    words = [f"--gin.WORK_DIR={folder}"]
    words += [f"--gin.{name}={value}" for name, value in bindings.items()]
    command = [sys.executable, "-m", "onesug_jax.main", "run", *words]
    if subprocess.run(command).returncode:
        raise UserError(
            f"sweep: the run in {folder} failed, see above; its command is\n"
            f"  {PROGRAM} run {shlex.join(words)}\n"
            "The same sweep command continues with it."
        )


def _plot(settings: Sequence[Setting], rows: Sequence[Row], path: str) -> str:
    """Plots MRR of all searches and of those with an order over the values of the first setting,
    one line per combination of the others; returns `path`.
    """
    from onesug_jax.plots import COLOURS, figure_of, save_figure

    (name, values), *others = settings
    stride = len(rows) // len(values)
    labels = [
        ", ".join(f"{n.rpartition('.')[2]}={v}" for (n, _), v in zip(others, chosen, strict=True))
        for chosen in itertools.product(*(v for _, v in others))
    ]
    figure, axes = figure_of(2, width=5.0)
    for axis, slice_, title in zip(
        axes, ("all", "order"), ("all searches", "with an order"), strict=True
    ):
        for start, label in enumerate(labels):
            scores = [row.scores.get(slice_, {}).get("mrr@16") for row in rows[start::stride]]
            colour = COLOURS[start % len(COLOURS)]
            axis.plot(range(len(values)), scores, "o-", color=colour, label=label or None)
        axis.set_xticks(range(len(values)), values)
        axis.set_xlabel(name)
        axis.set_ylabel("MRR@16, per cent")
        axis.set_title(title, loc="left")
    if len(labels) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def flags(parser: argparse.ArgumentParser) -> None:
    """What to sweep."""
    parser.add_argument(
        "--set",
        action="append",
        type=values_of,
        metavar="NAME=V,V",
        help="a setting and its values; repeat it for all combinations",
    )
    parser.add_argument(
        "--report", default="dev", metavar="NAME", help="which report to show (default: dev)"
    )
