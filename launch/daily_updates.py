"""Measures the gain of daily updates on the last days of a log.

  python launch/daily_updates.py --log LOG --work WORK --days 5 --gin_file=gin_configs/two_cores.gin

The log without its last days trains the first model (`run`). Then each day is the fresh log of an
`update`. The newest quarter of the day, which no model was trained on, is scored by the model in
use after the update and by the first model: with the same histories, but with its own counts, pools
and parameters. Prints a table, and writes WORK/daily.json and WORK/daily.png. After an
interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from onesug_jax import main, plots  # noqa: E402
from onesug_jax.files import write_json  # noqa: E402
from onesug_jax.logs.asof.config import DAY_MS  # noqa: E402
from onesug_jax.logs.ingest import ingest  # noqa: E402
from onesug_jax.pipeline import workdir  # noqa: E402


def cut_days(log: str, out: str, days: int) -> list[str]:
    """Writes out/base.parquet and a file for each of the last days; returns the days' files."""
    paths = [os.path.join(out, f"day{number}.parquet") for number in range(1, days + 1)]
    if os.path.exists(paths[-1]):
        return paths
    ingest(log, os.path.join(out, "all"), dev_share=0.0, test_share=0.0)
    parts = sorted(pathlib.Path(out, "all").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(part) for part in parts], promote_options="default")
    end = pc.max(rows["timestamp_ms"]).as_py()
    edges = [end - (days - number) * DAY_MS for number in range(days + 1)]
    pq.write_table(
        rows.filter(pc.less_equal(rows["timestamp_ms"], edges[0])), f"{out}/base.parquet"
    )
    for path, after, until in zip(paths, edges, edges[1:], strict=False):
        inside = pc.and_(
            pc.greater(rows["timestamp_ms"], after), pc.less_equal(rows["timestamp_ms"], until)
        )
        pq.write_table(rows.filter(inside), path)
    return paths


_ALL = "--gin.update.versions_retained=1000"


def scored(work: str, log: str, flags: list[str]) -> dict[str, float]:
    """Scores of a work directory's model in use on the newest rows of an update's log."""
    from onesug_jax.stages.scoring import judged, score
    from onesug_jax.stages.trained_model import TrainedModel

    context = main.context_of("update", f"--gin.WORK_DIR={work}", *flags)
    bundled = workdir.WorkDir(workdir.model_in_use(work))
    model = TrainedModel(dataclasses.replace(context, work=bundled, home=workdir.WorkDir(work)))
    metrics = score(model, os.path.join(log, "dev.parquet"), log, rivals="none").metrics["model"]
    return {**judged(metrics), "rows": metrics["all"]["n"]}


def play(log: str, work: str, days: int, flags: list[str]) -> None:
    """Trains, updates day by day, and shows the results."""
    os.makedirs(work, exist_ok=True)
    files = cut_days(log, work, days)
    shop, alone = os.path.join(work, "shop"), os.path.join(work, "alone")
    base = [f"--gin.WORK_DIR={shop}", f"--gin.LOG={os.path.join(work, 'base.parquet')}"]
    if not os.path.exists(os.path.join(shop, workdir.CURRENT)):
        if main.main(["run", *base, *flags]):
            sys.exit(1)
    if not os.path.exists(alone):
        shutil.copytree(shop, alone, copy_function=os.link)
    table = []
    for number, path in enumerate(files, 1):
        code = main.main(["update", f"--gin.WORK_DIR={shop}", f"--gin.LOG={path}", *flags, _ALL])
        if code not in (0, 3):
            sys.exit(code)
        version = pathlib.Path(shop, "versions", f"{number:04d}" + ".refused" * (code == 3))
        scores = {
            name: scored(home, str(version / "log"), flags)
            for name, home in (("no updates", alone), ("in use", shop))
        }
        table.append({"day": number, "published": code == 0, "scores": scores})
        write_json(os.path.join(work, "daily.json"), table)
    show(table, os.path.join(work, "daily.png"))


def show(table: list[dict], path: str) -> None:
    """Prints the table and saves the plot."""
    names = ("no updates", "in use")
    print(f"{'':<6}{'rows':>6}   " + "".join(f"{name:^24}" for name in names))
    print(f"{'day':<6}{'':>6}   " + f"{'MRR@16':>8}{'orders':>8}{'HR@16':>8}" * len(names))
    keys = ("mrr@16", "order_mrr@16", "hr@16")
    for line in table:
        cells = "".join(f"{line['scores'][name][key]:8.2f}" for name in names for key in keys)
        mark = "" if line["published"] else "  refused"
        print(f"{line['day']:<6}{line['scores']['no updates']['rows']:>6}   {cells}{mark}")
    rows = [line["scores"]["no updates"]["rows"] for line in table]
    mean = {
        (name, key): sum(n * line["scores"][name][key] for n, line in zip(rows, table, strict=True))
        / sum(rows)
        for name in names
        for key in keys
    }
    print(f"{'mean':<6}{sum(rows):>6}   " + "".join(f"{value:8.2f}" for value in mean.values()))
    figure, (axes,) = plots.figure_of(1, width=6.4)
    for name, colour in zip(("no updates", "in use"), plots.COLOURS, strict=False):
        values = [line["scores"][name]["mrr@16"] for line in table]
        axes.plot([line["day"] for line in table], values, marker="o", label=name, color=colour)
    axes.set_xlabel("day"), axes.set_ylabel("MRR@16, %, newest quarter of the day")
    axes.set_xticks([line["day"] for line in table])
    axes.legend(frameon=False)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", required=True, help="a log in the schema, or any `ingest` reads")
    parser.add_argument("--work", required=True, help="folder to work in")
    parser.add_argument("--days", type=int, default=5, help="how many updates")
    options, more = parser.parse_known_args()
    play(options.log, options.work, options.days, more)
