"""The stages of the command line, in order, from a raw log to a suggestion list.

Each stage is a short function that combines library parts, which its Context configures, and a
`StageSpec` with its inputs, its folder and its settings. Imports are inside the functions, so that
no stage loads packages that only another stage needs.

To add a stage: write its function in a file beside this one, add its `StageSpec` to `making.py` or
`using.py`, and add its settable names to `configurables.py`.
"""

from __future__ import annotations

import argparse

from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.stages.configurables import CONFIGURABLES
from onesug_jax.stages.making import MAKING
from onesug_jax.stages.using import USING

__all__ = ["CONFIGURABLES", "STAGES"]


def doctor(context: Context) -> int:
    """Prints versions, devices, memory and problems; returns 1 if there are problems."""
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
        help="the first stage to run; the stages before it are finished (default: the first)",
    )
    parser.add_argument(
        "--until",
        choices=names,
        metavar="STAGE",
        help="the last stage to run (default: the last)",
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
    run=lambda context: 0,  # `main` runs the stages
    flags=_part,
    in_run=False,
    example="run --gin_file=gin_configs/quickstart.gin --gin.WORK_DIR=work/quickstart",
)
STAGES = {spec.name: spec for spec in (_DOCTOR, *MAKING, *USING, _RUN)}
