"""The stage that sets finished runs side by side."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from typing import TYPE_CHECKING

from onesug_jax import workdir
from onesug_jax.files import require_files
from onesug_jax.registry import Context
from onesug_jax.stages import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from onesug_jax.evaluate.runs import Run

# What the cascade is trained from, as folders of a work directory.
_BEFORE_CASCADE = ("simulated", "log", "mined", "encoder", "semantic_ids", "index", "ranking")


def compare(context: Context) -> None:
    """The scores of several work directories as one table, with 95 % intervals, and how far each is
    ahead of the first.

    Folders named seed_0/NAME, seed_1/NAME, .. are the seeds of one row.
    """
    from onesug_jax.evaluate import runs

    folders = [*context.options.folders, *(context.options.run or ())]
    named = runs.names_of(folders or [context.work.path])
    found = {name: [read(folder) for folder in seeds] for name, seeds in named.items()}
    first = next(iter(found))
    weighed = {f"sft, orders^{kappa:g}": kappa for kappa in sorted(context.options.worth or ())}
    if weighed:
        worth, slices = _worth(named[first][0]), context.configured("SliceSpec")()
        found |= {
            name: [runs.by_worth(run, worth, kappa, slices=slices) for run in found[first]]
            for name, kappa in weighed.items()
        }
    rows = runs.rows_of(found)
    orders = runs.order_requests(found[first][0].lists)
    print(runs.format_rows(rows, orders))
    if len(rows) > 1:
        base = rows[-len(found)]  # behind the rivals
        print("\n" + runs.format_ahead(rows, base, orders))
        if context.options.plot:
            print("\n" + runs.plot_frontier(rows, base, orders, context.options.plot, weighed))


def _worth(folder: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Queries -> logs of their shares of orders in a work directory's log; 0 of unknown ones."""
    import numpy as np

    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.logs.worth import FILE, OrderGrades

    work = workdir.WorkDir(folder)
    require_files([os.path.join(work.ranking, FILE)], "what queries are worth", "run rank first")
    known = CompletionIndex.load(work.mined)
    shares = np.append(
        OrderGrades.load(work.ranking, len(known)).log_shares(), 0.0
    )  # [-1]: unknown
    return lambda queries: shares[np.array([known.find(query) for query in queries], np.int64)]


def read(folder: str) -> Run:
    """The run of a work directory: its report, the minutes that its stages took (those of a stage
    that was interrupted count from its last start), the size of the model in use; the same of the
    cascade, whose size is its trees' splits and leaves.

    Raises:
      UserError: nothing has been evaluated there.
    """
    from onesug_jax.evaluate import cascade_training, runs
    from onesug_jax.model.config import ModelConfig

    seconds, parameters = {}, None
    stages = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for stage in stages:
        made = workdir.Manifest.read(os.path.join(folder, stage))
        if made is not None and made.finished:
            began, ended = map(datetime.datetime.fromisoformat, (made.started, made.finished))
            seconds[stage] = (ended - began).total_seconds()
    for stage in ("pretrain", "rwr"):
        path = os.path.join(folder, stage, opened.MODEL_FILE)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                parameters = ModelConfig(**json.load(file)["model"]).parameters()
    rivals = {}
    if "cascade" in seconds:
        own = seconds.pop("cascade")
        before = sum(seconds.get(stage, 0) for stage in _BEFORE_CASCADE)
        with open(os.path.join(folder, "cascade", cascade_training.REPORT), "rb") as file:
            rivals["cascade"] = ((own + before) / 60, json.load(file).get("parameters"))
    minutes = sum(seconds.values()) / 60 or None
    return runs.read_run(folder, minutes=minutes, parameters=parameters, rivals=rivals)


def flags(parser: argparse.ArgumentParser) -> None:
    """What to compare."""
    parser.add_argument("folders", nargs="*", metavar="WORK_DIR", help="work directories to show")
    parser.add_argument(
        "--run", action="append", metavar="WORK_DIR", help="the same, one by one; repeat"
    )
    parser.add_argument(
        "--worth",
        action="append",
        type=float,
        metavar="KAPPA",
        help="show the first run's SFT lists too, weighed by each query's share of orders to the "
        "power of KAPPA; repeat",
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw orders against all searches, relative to the first"
    )
