"""The effect of freshness: scores of a split with counts that are a minute, an hour, a day .. old.

  python launch/freshness.py --work WORK_DIR
  python launch/freshness.py --work WORK_DIR --freshness 1m,1d,inf

The trained model, most popular completion and the best decayed count (and the cascade, if it was
trained) answer the requests of the dev split through time, once for each freshness. "inf" is the
frozen protocol: nothing is updated during the split. A user's own history is always up to date.
Prints MRR@16, and writes WORK_DIR/freshness.json and WORK_DIR/freshness.png.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onesug_jax import main, plots  # noqa: E402
from onesug_jax.errors import UserError  # noqa: E402
from onesug_jax.evaluate import headline, report  # noqa: E402
from onesug_jax.evaluate.baselines import half_life  # noqa: E402
from onesug_jax.files import write_json  # noqa: E402
from onesug_jax.logs.asof.config import MINUTE_MS, duration_ms  # noqa: E402

METRIC = "mrr@16"
FRESHNESS = "1m,1h,6h,1d,3d,inf"
_DECAYED = "best decayed count"


def curves(results: Mapping[str, headline.Metrics], label: str = "all") -> dict[str, list[float]]:
    """Suggester in words -> its MRR@16 in per cent at each freshness, in the headline's order.

    Args:
      results: freshness -> metrics. label: the slice.
    """
    lines: dict[str, dict[str, float]] = {}
    for freshness, metrics in results.items():
        for name, words in headline.lines(metrics, METRIC).items():
            words = _DECAYED if half_life(name) else words
            lines.setdefault(words, {})[freshness] = float(metrics[name][label][METRIC] or 0.0)
    return {words: [line.get(each, math.nan) for each in results] for words, line in lines.items()}


def format_curves(names: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """The curves as a table with a column for each freshness."""
    rows = [[f"{METRIC.upper()} in per cent", *names]]
    rows += [[words, *(f"{value:.2f}" for value in line)] for words, line in lines.items()]
    return report.table(rows)


def plot(names: Sequence[str], lines: Mapping[str, Sequence[float]], path: str) -> str:
    """Saves a plot of MRR against freshness; returns its path."""
    minutes = [duration_ms(each) / MINUTE_MS for each in names]
    last = max((each for each in minutes if math.isfinite(each)), default=1.0)
    at = [max(each, 0.1) if math.isfinite(each) else 6 * max(last, 1.0) for each in minutes]
    figure, (axis,) = plots.figure_of(1, width=6.4)
    for place, (words, line) in enumerate(lines.items()):
        colour = plots.COLOURS[place % len(plots.COLOURS)]
        axis.plot(at, line, "o-", color=colour, markersize=4, label=words)
    axis.set_xscale("log")
    axis.set_xticks(at, [each if each != "inf" else "never updated" for each in names])
    axis.minorticks_off()
    axis.set(xlabel="age of the latest visible searches of others", ylabel=f"{METRIC.upper()} in %")
    axis.legend(frameon=False, fontsize=8)
    return plots.save_figure(figure, path)


def run() -> int:
    """Scores, prints and writes; prints a message and returns 2 after a user's error."""
    from onesug_jax.pipeline.workdir import split_files
    from onesug_jax.stages.scoring import replayed
    from onesug_jax.stages.trained_model import TrainedModel

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", required=True, metavar="WORK_DIR")
    parser.add_argument("--freshness", default=FRESHNESS, help=f"default: {FRESHNESS}")
    parser.add_argument("--split", default="dev")
    options, flags = parser.parse_known_args()
    try:
        names = options.freshness.split(",")
        for name in names:
            duration_ms(name)
        context = main.context_of("evaluate", f"--gin.WORK_DIR={options.work}", *flags)
        log = context.home.log
        results: dict = {}
        split = split_files(log).get(options.split)
        if split is None:
            raise UserError(f"{log}: expected a split {options.split!r}, found no such file")
        model = TrainedModel(context)
        for name in names:
            print(f"freshness {name}", flush=True)
            results[name] = replayed(model, split, log, freshness=name).metrics
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stem = os.path.join(context.home.path, "freshness")
    write_json(f"{stem}.json", results, indent=1, allow_nan=False)
    both = {label: curves(results, label) for label in headline.SLICES}
    for label, words in headline.SLICES.items():
        print(f"\n{words}\n{format_curves(names, both[label])}")
    print(f"\nplot: {plot(names, both['all'], f'{stem}.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(run())
