"""Measures the figures in the documents; each run includes a baseline, because ratios matter.

  python launch/bench.py --suite decode --model tiny    beam search, and that of other libraries
  python launch/bench.py --suite decode --model base:6+6 --sides ours,flat
  python launch/bench.py --suite train --model tiny,small   a step, and that of Hugging Face's T5
  python launch/bench.py --suite serve --work work/quickstart   the service under load
  python launch/bench.py --suite live        counts: an event, a request, a replayed row
  python launch/bench.py --suite poison      forged feedback: the share of lists that it reaches
  python launch/bench.py --suite blocking    blocked terms: start, and a list
  python launch/bench.py --suite loader      batches from shards, and the time waiting for them
  python launch/bench.py --suite road --rows 100_000,1_000_000 --engine duckdb,spark
                                             all stages before training, on a large log

Data and parameters are random, because speed does not depend on them. Only `serve` needs a trained
WORK_DIR.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_decode import add_flags, decode, machine  # noqa: E402

from onesug_jax.errors import UserError  # noqa: E402

SUITES = ("decode", "train", "serve", "live", "poison", "blocking", "loader", "road")


def run(options: argparse.Namespace, flags: list[list[str]]) -> None:
    """Runs one suite, which prints its figures."""
    sizes = ",".join(options.model or ["tiny"]).split(",")
    if options.suite == "decode":
        decode(sizes, options)
    elif options.suite == "train":
        from bench_train import train

        batch = int(options.batch) if options.batch else None
        train(sizes, options.count, batch, [(name, value) for name, value in flags])
    elif options.suite == "serve":
        from bench_serve import serve

        serve(options.work, options.count or 20)
    elif options.suite == "live":
        from bench_live import live

        live(options.count or 60_000)
    elif options.suite == "poison":
        from bench_poison import poison

        poison(options.count or 20_000)
    elif options.suite == "blocking":
        from bench_blocking import blocking

        blocking()
    elif options.suite == "loader":
        from bench_loader import loader

        loader(sizes[0], options.count or 100)
    else:
        from bench_road import road

        road([int(size) for size in options.rows.split(",")], options.engine.split(","))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument(
        "--model", action="append", help="names in gin_configs/models (default tiny)"
    )
    parser.add_argument("--rows", default="100_000", help="suite `road`: numbers, comma-separated")
    parser.add_argument("--engine", default="duckdb", help="suite `road`: names, comma-separated")
    parser.add_argument("--work", default="work/quickstart", help="suite `serve`: a WORK_DIR")
    parser.add_argument("--count", type=int, help="steps per round, seconds per load, or events")
    add_flags(parser)
    options, rest = parser.parse_known_args()
    flags = [word[len("--gin.") :].split("=", 1) for word in rest if word.startswith("--gin.")]
    if unknown := [w for w in rest if not w.startswith("--gin.") or "=" not in w]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if flags and options.suite != "train":
        parser.error("--gin.NAME=VALUE: only the suite `train` takes settings")
    print(machine())
    try:
        run(options, flags)
    except UserError as error:
        sys.exit(f"error: {error}")
