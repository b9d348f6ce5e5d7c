"""The stage that compiles every step for chips which are not here (`train/compile.py`)."""

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
    """Compiles the configured steps for `--topology` and says what each costs.

    Nothing of WORK_DIR is read: shapes alone count. `vocabulary` is the number of tokens, `vector`
    the width of e_p* and of items' vectors, `lists` how many requests a serving batch holds,
    `queries` how many queries the shop has, and as many prefixes.

    Returns:
      0, or 2 where a step does not fit.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the chips compiled for are not here
    from onesug_jax.stages.compile_steps import Changes, Sizes, build_step
    from onesug_jax.train.chips import Topology
    from onesug_jax.train.compile import analyse, format_analysis
    from onesug_jax.train.compiler import check_options

    options = context.options
    wanted = [word.strip() for word in options.only.split(",")]
    unknown = [word for word in wanted if word not in WHAT]
    if unknown:
        raise UserError(f"--only={options.only}: expected some of {', '.join(WHAT)}")
    if options.slices < 1:
        raise UserError(f"--slices={options.slices}: expected 1 or more")
    topology = Topology.parse(options.topology)
    devices = topology.devices(options.slices)
    mesh = context.configured("make_mesh")(devices=devices)
    check_options(mesh, context.configured("compiler_options")(mesh))
    sizes = Sizes(vocabulary, vector, lists, queries)

    def compiled(word: str, changes: Changes) -> Analysis:
        return analyse(build_step(word, context, devices, sizes, changes), topology)

    rows, fits = [], True
    for word in wanted:
        found = compiled(word, Changes())
        change = None if found.fits else _nearest(word, context, dict(mesh.shape), compiled)
        fits &= found.fits
        rows.append(found.as_json() | {"change": change})
        if not options.json:
            print("\n".join(filter(None, [format_analysis(found), change])), flush=True)
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
        "--slices", type=int, default=1, help="so many such slices, a replica each (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def _nearest(
    word: str,
    context: Context,
    mesh: dict[str, int],
    compiled: Callable[[str, Changes], Analysis],
) -> str:
    """The first change that makes a step fit, tried one after another; each is compiled."""
    for flags, changes in [] if word == "serve" else _tries(word, context, mesh):
        if compiled(word, changes).fits:
            return f"  it fits with {flags}"
    if word == "serve":
        return "  serve smaller batches (--gin.compile.lists), or a smaller model"
    return (
        "  no change of microbatches, recomputation or fsdp makes it fit: take more chips, a "
        "smaller batch or a smaller model"
    )


def _tries(word: str, context: Context, mesh: dict[str, int]) -> Iterator[tuple[str, Changes]]:
    """Changes that take less memory, with the flags that make them: recomputation, microbatches,
    then the parameters over more chips.
    """
    from onesug_jax.stages.compile_steps import Changes

    remat = None if word == "align" else "full"  # the encoder recomputes nothing
    recompute = "" if remat is None else " --gin.ModelConfig.remat='full'"
    if remat is not None:
        yield recompute.strip(), Changes(remat=remat)
    parts, more = mesh["data"] * mesh["fsdp"], 2
    while context.settings[f"{word}.batch_size"] // more >= parts * mesh["replica"]:
        flag = f"--gin.{word}.accumulation={more}"
        yield flag, Changes(accumulation=more)
        if remat is not None:
            yield flag + recompute, Changes(accumulation=more, remat=remat)
        more *= 4
    fsdp = mesh["fsdp"]
    while fsdp * 2 <= parts:
        fsdp *= 2
        flags = f"--gin.make_mesh.data=-1 --gin.make_mesh.fsdp={fsdp}"
        yield flags + recompute, Changes(fsdp=fsdp, remat=remat)
