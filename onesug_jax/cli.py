"""The command line: `STAGE [--gin_file=F ...] [--gin.NAME=VALUE ...] [--dry_run] [own flags]`.

Parses arguments into a `Command` and writes the help texts. `main.py` reads the configuration and
runs the command. Only the standard library is imported, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import PROGRAM, StageSpec
from onesug_jax.signatures import is_literal, nearest, parameters

MACROS: dict[str, tuple[Any, str]] = {  # name: (type, meaning)
    "WORK_DIR": (str, "folder for the results of all stages"),
    "LOG": (str | None, "the suggestion log: a file, folder or glob; None = a simulated shop's"),
    "MODEL": (str, "size: a name in gin_configs/models, or a gin file"),
    "MESH": (str, "devices: a name in gin_configs/mesh, or a gin file"),
    "BATCH_SIZE": (int, "examples in a training step, over all devices"),
    "STEPS": (int, "training steps"),
    "SEED": (int, "the one seed of all randomness"),
    "ENGINE": (str, "where large logs are worked on: duckdb (this machine) or spark"),
    "PARAMS_FROM": (str | None, "a folder of parameters to start training from"),
}


@dataclasses.dataclass(frozen=True)
class Command:
    """One parsed command line."""

    stage: str
    gin_files: tuple[str, ...]
    bindings: tuple[tuple[str, str], ...]  # ("pretrain.steps", "100") in the order given
    options: argparse.Namespace


def quoted(name: str, value: str) -> str:
    """A flag's value as gin text: literals, @references and %macros unchanged, the rest quoted.

    So paths and names need no quotes: `--gin.WORK_DIR=/tmp/w`, `--gin.MODEL=tiny`.
    """
    value = value.strip()
    if value in ("true", "false"):
        return value.capitalize()
    if value.startswith(("@", "%")):
        return value
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        nested = value[:1] in ("[", "(", "{") and ("@" in value or "%" in value)
        return value if nested else repr(value)
    is_text = name in MACROS and MACROS[name][0] is not int  # WORK_DIR=7 is the folder called 7
    return repr(value) if is_text and not isinstance(literal, str | None) else value


def parse(
    argv: Sequence[str], stages: Mapping[str, StageSpec], configurables: Mapping[str, str]
) -> Command | str:
    """The parsed command, or the requested help text.

    Args:
        argv: the words after the program's name.
        stages: the stages by name.
        configurables: configuration name -> `module:attribute`, for the help texts.

    Raises:
        UserError: an unknown stage or flag; the message suggests the nearest valid name.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        return overview(stages)
    stage = argv[0]
    if stage.startswith("-"):
        raise UserError(
            f"the stage comes first, found {stage!r}. Write: {PROGRAM} STAGE {stage} ... "
            f"with STAGE one of {', '.join(stages)}."
        )
    if stage not in stages:
        raise UserError(f"no stage {stage!r}: {nearest(stage, stages, everything='stages')}")
    bindings, rest = [], []
    for argument in argv[1:]:
        if argument.startswith("--gin."):
            name, equals, value = argument.removeprefix("--gin.").partition("=")
            if not equals or not name:
                raise UserError(f"{argument}: expected --gin.NAME=VALUE, found no '=' and value.")
            bindings.append((name.strip(), quoted(name.strip(), value)))
        else:
            rest.append(argument)
    parser = _parser(stages[stage], stages, configurables)
    if "-h" in rest or "--help" in rest:
        return parser.format_help()
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        flags += ["--gin.NAME=VALUE"]
        name = unknown[0].split("=")[0]
        raise UserError(f"stage {stage} has no flag {name!r}: {nearest(name, flags)}")
    return Command(stage, tuple(options.gin_file), tuple(bindings), options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")


def _parser(
    spec: StageSpec, stages: Mapping[str, StageSpec], configurables: Mapping[str, str]
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{PROGRAM} {spec.name}",
        description=spec.summary,
        epilog=_epilog(spec, configurables),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="F",
        help="configuration file, looked up here, then in gin_configs/; may be repeated, later "
        "files win",
    )
    parser.add_argument(
        "--gin.NAME",
        dest="unused",
        metavar="VALUE",
        help="--gin.NAME=VALUE sets one configuration value; wins over files; no quotes needed",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check everything, print the configuration and the plan, and do nothing",
    )
    if spec.folder or spec.name == "run":
        parser.add_argument(
            "--restart",
            nargs="?",
            const=spec.name,
            choices=[stage.name for stage in stages.values() if stage.folder],
            metavar="STAGE",
            help="run this stage again even if it is finished, and allow later trained stages to "
            "be replaced; each old result stays until the new one is finished",
        )
    if spec.flags:
        spec.flags(parser)
    return parser


def _epilog(spec: StageSpec, configurables: Mapping[str, str]) -> str:
    lines = [
        f"  {name}.{parameter.name} = {parameter.default!r}"
        for name in spec.uses()
        for parameter in parameters(configurables[name]).values()
        if is_literal(parameter.default)
    ]
    if lines:
        lines.insert(0, "--gin.NAME=VALUE sets the macros and, with the code's defaults:")
    if spec.example:
        lines += [*([""] if lines else []), f"example:\n  {PROGRAM} {spec.example}"]
    return "\n".join(lines)


def overview(stages: Mapping[str, StageSpec]) -> str:
    """The text of `--help` without a stage."""
    summaries = "\n".join(f"  {spec.name:<10} {spec.summary}" for spec in stages.values())
    macros = "\n".join(f"  {name:<12} {meaning}" for name, (_, meaning) in MACROS.items())
    return f"""usage: {PROGRAM} STAGE [--gin_file=F ...] [--gin.NAME=VALUE ...] [--dry_run]

From a raw suggestion log to a model that writes the next suggestion list.

stages:
{summaries}

macros, set by --gin.NAME=VALUE or in a gin file (defaults: gin_configs/defaults.gin):
{macros}

Any other NAME is `function.parameter`, as in --gin.pretrain.steps=100; `STAGE --help` lists them.

examples:
  {PROGRAM} doctor
  {PROGRAM} run --gin_file=gin_configs/quickstart.gin --gin.WORK_DIR=work/quickstart
  {PROGRAM} run --gin.LOG=my_log.parquet --gin.WORK_DIR=work/mine --gin.MODEL=small --dry_run
  {PROGRAM} suggest --gin.WORK_DIR=work/quickstart --prefix "lego st" --history "duplo" --json
"""
