"""What each way of making a list is worth, and takes: `bench.py --suite modes`.

  python launch/bench.py --suite modes --work work/quickstart --count 512

The first dev requests of a finished WORK_DIR, by beams, by scoring candidates, and by both
(`decode/suggester.py`): HR@16, MRR@16, that of requests with an order, and milliseconds a list, in
batches of 32 and one by one. Related queries are found beforehand and not timed. Modes take turns,
block by block, so that what else the machine does hits all.
"""

from __future__ import annotations

import os
import time

import numpy as np

from onesug_jax import main
from onesug_jax.decode.score import MODES
from onesug_jax.evaluate import metrics
from onesug_jax.logs.history import with_history
from onesug_jax.logs.schema import normalise_query, profile_columns
from onesug_jax.stages import opened
from onesug_jax.tasks.features import make_requests

BLOCK, SINGLE, K = 32, 256, 16


def modes(work: str, count: int) -> None:
    """Prints the table for the first `count` dev requests of `work`."""
    context = main.context_of("evaluate", f"--gin.WORK_DIR={work}")
    suggester = context.configured("suggester")(context)
    known = opened.related(context, suggester.featurizer.spec)
    files = opened.splits(context.home.log)
    history = suggester.featurizer.spec.history
    read = with_history(list(files.values()), keep=files["dev"], history=history)
    table = read.read_all().slice(0, count)
    rows, names = table.to_pylist(), profile_columns(table.schema)
    requests = make_requests(
        known,
        [row["prefix"] for row in rows],
        [row["recent"] or () for row in rows],
        [tuple(row[name] or "" for name in names) for row in rows],
        suggester.scoring.candidates,
        [row["recent_minutes"] or () for row in rows],
    )
    orders = np.array([bool(row["ordered_items"]) for row in rows])
    truths = [normalise_query(row["query"]) for row in rows]
    blocks = [requests[at : at + BLOCK] for at in range(0, len(requests), BLOCK)]
    lists: dict[str, list] = {mode: [] for mode in MODES}
    together: dict[str, list[float]] = {mode: [] for mode in MODES}
    alone: dict[str, list[float]] = {mode: [] for mode in MODES}
    for block in blocks:  # compiles, and is what is scored
        for mode in MODES:
            lists[mode] += suggester.suggest(block, mode=mode)
    for block in blocks:
        for mode in MODES:
            spent = _spent(suggester, block, mode) / len(block)
            together[mode].append(spent)
    for timed in (False, True):  # first every shape is compiled
        for request in requests[:SINGLE]:
            for mode in MODES:
                spent = _spent(suggester, [request], mode)
                if timed:
                    alone[mode].append(spent)
    print(
        f"\n{os.path.basename(work)}: {len(rows)} dev requests, {orders.sum()} with an order; "
        f"{suggester.config.beams} beams, {suggester.scoring.candidates} candidates; ms a list"
    )
    print(f"  {'':<8} {'HR@16':>6} {'MRR@16':>7} {'orders':>7} {'of 32':>7} {'one':>7} {'p99':>7}")
    for mode in MODES:
        ranks = [
            metrics.rank_of(truth, [one.text for one in found][:K])
            for truth, found in zip(truths, lists[mode], strict=True)
        ]
        gains = np.array([100 / rank if rank else 0.0 for rank in ranks])
        hits, single = 100 * np.mean(np.array(ranks) > 0), np.array(alone[mode])
        of_orders = gains[orders].mean() if orders.any() else np.nan
        print(
            f"  {mode:<8} {hits:>6.2f} {gains.mean():>7.2f} {of_orders:>7.2f} "
            f"{np.median(together[mode]):>7.1f} {np.median(single):>7.1f} "
            f"{np.percentile(single, 99):>7.1f}",
            flush=True,
        )


def _spent(suggester, requests, mode: str) -> float:
    began = time.perf_counter()
    suggester.suggest(requests, mode=mode)
    return 1000 * (time.perf_counter() - began)
