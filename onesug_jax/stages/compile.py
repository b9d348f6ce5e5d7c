"""The stage that compiles every step for chips that are not attached (`train/compile.py`)."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import Context

if TYPE_CHECKING:
    from onesug_jax.stages.compile_steps import Changes
    from onesug_jax.train.compile import Analysis

WHAT = ("pretrain", "rwr", "align", "serve")
DOES_NOT_FIT = 2


def compile_ahead(
    context: Context,
    *,
    vocabulary: int = 32_768,
    vector: int = 128,
    lists: int = 256,
    queries: int = 1_000_000,
) -> int:
    """Compiles the configured steps for `--topology` and prints the cost of each.

    WORK_DIR is not read: the result depends only on shapes. `vocabulary` is the number of tokens,
    `vector` the width of e_p* and of items' vectors, `lists` the number of requests in a serving
    batch, `queries` the number of the shop's queries, and also of its prefixes.

    Returns:
      0, or 2 if a step does not fit.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the target chips are not attached
    from onesug_jax.stages.compile_steps import Changes, Sizes, build_step
    from onesug_jax.train.chips import Topology
    from onesug_jax.train.compile import analyse, format_analysis
    from onesug_jax.train.compiler import check_options

    options = context.options
    steps = [step.strip() for step in options.only.split(",")]
    if not set(steps) <= set(WHAT):
        raise UserError(f"--only={options.only}: expected some of {', '.join(WHAT)}")
    if options.slices < 1:
        raise UserError(f"--slices={options.slices}: expected 1 or more")
    topology = Topology.parse(options.topology)
    devices = topology.devices(options.slices)
    mesh = context.configured("make_mesh")(devices=devices)
    check_options(mesh, context.configured("compiler_options")(mesh))
    sizes = Sizes(vocabulary, vector, lists, queries)

    def compiled(step: str, changes: Changes) -> Analysis:
        return analyse(build_step(step, context, devices, sizes, changes), topology)

    rows, fits = [], True
    for step in steps:
        analysis = compiled(step, Changes())
        change = None if analysis.fits else _nearest(step, context, dict(mesh.shape), compiled)
        fits &= analysis.fits
        rows.append(analysis.as_json() | {"change": change})
        if not options.json:
            print("\n".join(filter(None, [format_analysis(analysis), change])), flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    return 0 if fits else DOES_NOT_FIT


def flags(parser: argparse.ArgumentParser) -> None:
    """What to compile for."""
    parser.add_argument(
        "--topology", required=True, help="chips and shape: v5e:4x4, v5e:16x16, v5p:4x4x8, ..."
    )
    parser.add_argument(
        "--only", default=",".join(WHAT), help=f"which steps, of {','.join(WHAT)} (default all)"
    )
    parser.add_argument(
        "--slices", type=int, default=1, help="number of slices, one replica on each (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def _nearest(
    step: str,
    context: Context,
    mesh: dict[str, int],
    compiled: Callable[[str, Changes], Analysis],
) -> str:
    """Advice for a step that does not fit: the first change with which it compiles and fits."""
    if step == "serve":
        return "  serve smaller batches (--gin.compile.lists), or a smaller model"
    for flags, changes in _tries(step, context, mesh):
        if compiled(step, changes).fits:
            return f"  it fits with {flags}"
    return (
        "  no change of microbatches, recomputation or fsdp makes it fit: take more chips, a "
        "smaller batch or a smaller model"
    )


def _tries(step: str, context: Context, mesh: dict[str, int]) -> Iterator[tuple[str, Changes]]:
    """Changes that need less memory, with their flags: recomputation, microbatches, then parameters
    over more chips.
    """
    from onesug_jax.stages.compile_steps import Changes

    remat = None if step == "align" else "full"  # the encoder has no recomputation
    recompute = "" if remat is None else " --gin.ModelConfig.remat='full'"
    if remat is not None:
        yield recompute.strip(), Changes(remat=remat)
    shards, accumulation = mesh["data"] * mesh["fsdp"], 2
    while context.settings[f"{step}.batch_size"] // accumulation >= shards * mesh["replica"]:
        flag = f"--gin.{step}.accumulation={accumulation}"
        yield flag, Changes(accumulation=accumulation)
        if remat is not None:
            yield flag + recompute, Changes(accumulation=accumulation, remat=remat)
        accumulation *= 4
    fsdp = mesh["fsdp"]
    while fsdp * 2 <= shards:
        fsdp *= 2
        flags = f"--gin.make_mesh.data=-1 --gin.make_mesh.fsdp={fsdp}"
        yield flags + recompute, Changes(fsdp=fsdp, remat=remat)
