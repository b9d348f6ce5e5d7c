"""The stage that compares finished runs."""

from __future__ import annotations

import argparse
import datetime
import os
from typing import TYPE_CHECKING

from onesug_jax.files import require_files
from onesug_jax.pipeline.mirror import brought
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import FOLDERS, Manifest, WorkDir, read_result
from onesug_jax.stages import trained
from onesug_jax.train.history import format_history

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from onesug_jax.evaluate.runs import Row, Run

_SMOOTHING = 4.0  # pseudo-searches with the average share of orders, added to every query
_PLACES = {"align": "encoder", "quantize": "semantic_ids"}  # stage -> its folder
# Folders of a work directory that the cascade is trained from.
_BEFORE_CASCADE = (
    "simulated",
    "log",
    "mined",
    "encoder",
    "semantic_ids",
    "index",
    "vocab",
    "examples",
)


def compare(context: Context) -> None:
    """Prints the scores of several work directories as one table, with 95 % intervals, and the
    difference of each to the first.

    Folders named seed_0/NAME, seed_1/NAME, .. are the seeds of one row.
    """
    from onesug_jax.evaluate import runs

    options = context.options
    paths = [*options.folders, *(options.run or ())] or [
        context.mirror.url if context.mirror else context.work.path
    ]
    patterns = [f"report/{options.report}", *(["log/train.parquet"] if options.orders else [])]
    folders = [brought(path, *patterns) for path in paths]
    named = runs.names_of(folders)
    weights = {f"sft, orders^{kappa:g}": kappa for kappa in sorted(options.orders or ())}
    weighted = {}
    if weights:
        first = next(iter(named.values()))
        shares, slices = _order_shares(first[0]), context.configured("SliceSpec")()
        first_runs = [read(folder, options.report) for folder in first]
        weighted = {
            name: [runs.by_orders(run, shares, kappa, slices=slices) for run in first_runs]
            for name, kappa in weights.items()
        }
    table, rows = side_by_side(folders, options.report, weighted)
    print(table)
    if len(rows) > 1 and options.plot:
        orders = runs.order_requests(read(folders[0], options.report).lists)
        base = rows[-len(named) - len(weighted)]  # after the rivals
        print("\n" + runs.plot_frontier(rows, base, orders, options.plot, weights))
    for line in _changed(named):
        print(line)


def side_by_side(
    folders: Sequence[str], report: str = "dev", weighted: Mapping[str, list[Run]] | None = None
) -> tuple[str, list[Row]]:
    """The text of a comparison (table, differences to the first folder, settings that differ), and
    the rows of its table: the rivals, the folders, then `weighted`.

    Raises:
      UserError: one of the folders was not evaluated.
    """
    from onesug_jax.evaluate import runs

    named = runs.names_of(folders)
    results = {name: [read(folder, report) for folder in seeds] for name, seeds in named.items()}
    orders = runs.order_requests(next(iter(results.values()))[0].lists)
    results |= weighted or {}
    rows = runs.rows_of(results)
    parts = [runs.format_rows(rows, orders)]
    if len(rows) > 1:
        parts.append("\n" + runs.format_ahead(rows, rows[-len(results)], orders))
    parts += _differing({name: seeds[0] for name, seeds in named.items()}, report)
    return "\n".join(parts), rows


def _settings(folder: str, report: str) -> dict[str, object]:
    """The settings of a work directory's finished stages and of a report."""
    places = [*FOLDERS, os.path.join("report", report)]
    manifests = [Manifest.read(os.path.join(folder, place)) for place in places]
    return {k: v for made in manifests if made and made.finished for k, v in made.settings.items()}


def _differing(named: Mapping[str, str], report: str) -> list[str]:
    """A line for each setting in which the runs differ; [] for one run."""
    settings = {name: _settings(folder, report) for name, folder in named.items()}
    keys = sorted({key for of_run in settings.values() for key in of_run})
    lines = []
    for key in keys:
        values = {name: repr(of_run[key]) for name, of_run in settings.items() if key in of_run}
        if len(set(values.values())) > 1:
            lines.append(f"  {key}: " + ", ".join(f"{v} in {name}" for name, v in values.items()))
    return ["", "settings that differ:", *lines] if lines else []


def _changed(named: Mapping[str, Sequence[str]]) -> list[str]:
    """Changes of settings during a run's training, from its stages' histories."""
    lines = []
    for folder in (folder for seeds in named.values() for folder in seeds):
        for stage in ("align", "quantize", "pretrain", "rwr"):
            place = os.path.join(folder, _PLACES.get(stage, stage))
            later = format_history(place)[1:]
            lines += [f"  {os.path.basename(folder)} {stage}: {line}" for line in later]
    return ["", "changed while training:", *lines] if lines else []


def _order_shares(folder: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Queries -> log(share of orders / average share), smoothed, in a work directory's train split;
    0 for unknown queries.
    """
    import collections
    import math

    import numpy as np
    import pyarrow.parquet as pq

    path = os.path.join(WorkDir(folder).log, "train.parquet")
    require_files([path], "the train split", "run ingest first")
    table = pq.read_table(path, columns=["query", "ordered_items"])
    queries = table["query"].to_pylist()
    searches = collections.Counter(queries)
    ordered = [bool(items) for items in table["ordered_items"].to_pylist()]
    orders = collections.Counter(q for q, had in zip(queries, ordered, strict=True) if had)
    average = max(sum(ordered), 1) / max(len(queries), 1)

    def share(query: str) -> float:
        if query not in searches:
            return 0.0
        smoothed = (orders[query] + _SMOOTHING * average) / (searches[query] + _SMOOTHING)
        return math.log(smoothed / average)

    return lambda texts: np.array([share(query) for query in texts], np.float64)


def read(folder: str, name: str = "dev") -> Run:
    """The run of a work directory: the report `name`, the minutes of its stages (of an interrupted
    one since its last start) and the number of parameters of the model in use. For the cascade the
    parameters are the splits and leaves of its trees.

    Raises:
      UserError: there is no such report.
    """
    from onesug_jax.evaluate import cascade_training, runs

    seconds, parameters = {}, None
    for stage in FOLDERS:
        made = Manifest.read(os.path.join(folder, stage))
        if made is not None and made.finished:
            began, ended = map(datetime.datetime.fromisoformat, (made.started, made.finished))
            seconds[stage] = (ended - began).total_seconds()
    for stage in ("pretrain", "rwr"):
        path = os.path.join(folder, stage, trained.MODEL_FILE)
        if os.path.isfile(path):
            parameters = trained.stored_config(path).parameters()
    rivals = {}
    if "cascade" in seconds:
        own = seconds.pop("cascade")
        before = sum(seconds.get(stage, 0) for stage in _BEFORE_CASCADE)
        report = read_result(os.path.join(folder, "cascade", cascade_training.REPORT))
        rivals["cascade"] = ((own + before) / 60, report.get("parameters"))
    minutes = sum(seconds.values()) / 60 or None
    return runs.read_run(folder, name, minutes=minutes, parameters=parameters, rivals=rivals)


def flags(parser: argparse.ArgumentParser) -> None:
    """What to compare."""
    parser.add_argument("folders", nargs="*", metavar="WORK_DIR", help="work directories to show")
    parser.add_argument(
        "--run", action="append", metavar="WORK_DIR", help="one work directory to show; repeat"
    )
    parser.add_argument(
        "--orders",
        action="append",
        type=float,
        metavar="KAPPA",
        help="also show the first run's SFT lists, weighted by each query's share of orders to the "
        "power of KAPPA; repeat",
    )
    parser.add_argument(
        "--report", default="dev", metavar="NAME", help="which report of each (default: dev)"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw orders against all searches, relative to the first"
    )
