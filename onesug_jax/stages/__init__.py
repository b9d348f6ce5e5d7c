"""The stages of the command line, in order, from a raw log to a suggestion list.

Each stage is a short function that joins library parts (taken configured from its Context) and a
`StageSpec` that says what it reads, fills and depends on. Each part is described in its own file.
Imports stand inside the functions, so that no stage loads what only another one needs.

To add a stage: write its function in a file beside this one, add its `StageSpec` to `making.py` or
`using.py`, and name in `configurables.py` what --gin.NAME=VALUE may set of it.
"""

from __future__ import annotations

import argparse

from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.stages.configurables import CONFIGURABLES
from onesug_jax.stages.making import MAKING
from onesug_jax.stages.using import USING

__all__ = ["CONFIGURABLES", "STAGES"]


def doctor(context: Context) -> int:
    """Prints versions, devices, memory and what is missing; 1 when something required is."""
    from onesug_jax.doctor import report

    return report(context.work.path, imports=context.options.imports)


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--imports",
        action="store_true",
        help="also check that the large packages can be imported in one process (some seconds)",
    )


def _part(parser: argparse.ArgumentParser) -> None:
    names = [spec.name for spec in (*MAKING, *USING) if spec.in_run]
    parser.add_argument(
        "--from",
        dest="first",
        choices=names,
        metavar="STAGE",
        help="the first stage to run; what is before it is there already (default: all)",
    )
    parser.add_argument(
        "--until",
        choices=names,
        metavar="STAGE",
        help="the last stage to run (default: to the end)",
    )


_DOCTOR = StageSpec(
    name="doctor",
    summary="print versions, devices, memory, and what is missing with its fix",
    run=doctor,
    flags=_doctor_flags,
    in_run=False,
    example="doctor --gin.WORK_DIR=work/quickstart",
)
_RUN = StageSpec(
    name="run",
    summary="all of it: every stage in order, skipping what is up to date and saying why not",
    run=lambda context: 0,  # main runs the others
    flags=_part,
    in_run=False,
    example="run --gin_file=gin_configs/quickstart.gin --gin.WORK_DIR=work/quickstart",
)
STAGES = {spec.name: spec for spec in (_DOCTOR, *MAKING, *USING, _RUN)}
