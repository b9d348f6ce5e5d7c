"""The only entry, `python -m onesug_jax.main STAGE ...`, and the only file that imports gin.

Configuration files and flags are read in one order (defaults.gin, the model's file, the mesh's
file, --gin_file in turn, flags; later wins), every name and value is checked against the source of
what it configures, and only then is what the stage declares imported and given to gin.
Library code knows nothing of gin: a stage gets its functions, already configured, from its Context.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from onesug_jax import cli, doctor, registry, workdir
from onesug_jax.errors import UserError, plain
from onesug_jax.signatures import Parameter, nearest, parameters
from onesug_jax.stages import CONFIGURABLES, STAGES, lists
from onesug_jax.train import distributed

try:
    import gin
    from gin import config_parser
except ModuleNotFoundError:  # `doctor` still answers
    gin = None

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = os.path.join(ROOT, "gin_configs")
Binding = tuple[str, Any, str]  # key, value, where it was given


class _Expression(str):
    """A gin expression inside a value, `@name`, `@name()` or `%MACRO`; prints as it is written."""

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass
class _Expressions:
    """gin's parser hook: keeps expressions as text, and their names for checking."""

    names: list[str] = dataclasses.field(default_factory=list)
    macros: list[str] = dataclasses.field(default_factory=list)

    def configurable_reference(self, name: str, evaluate: bool) -> _Expression:
        self.names.append(name.split("/")[-1])
        return _Expression(f"@{name}{'()' if evaluate else ''}")

    def macro(self, name: str) -> _Expression:
        self.macros.append(name)
        return _Expression(f"%{name}")


@dataclasses.dataclass
class Config:
    """All bindings in force: {"STEPS": 9, "make_mesh.data": 1, "scope/ModelConfig.d_ff": 64}."""

    bindings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def resolved(self, value: Any) -> Any:
        """A value with its macros filled in; references stay text; tuples become lists."""
        if isinstance(value, _Expression):
            return self.macro(value[1:]) if value.startswith("%") else str(value)
        if isinstance(value, dict):
            return {key: self.resolved(item) for key, item in value.items()}
        return [self.resolved(item) for item in value] if isinstance(value, list | tuple) else value

    def macro(self, name: str) -> Any:
        """The value of a macro."""
        return self.resolved(self.bindings[name])

    def seen_by(self, stage: str) -> Config:
        """Without what is scoped to another stage: `align/make_optimizer...` is align's alone."""
        others = STAGES.keys() - {stage}
        kept = {k: v for k, v in self.bindings.items() if k.rpartition("/")[0] not in others}
        return Config(kept)

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        """The bindings of these names, in every scope."""
        return {key: value for key, value in self.bindings.items() if _split(key)[0] in names}

    def reach(self, names: Sequence[str]) -> tuple[str, ...]:
        """These names and those that their values refer to."""
        found = list(names)
        for name in found:
            for used in re.findall(r"@(?:\w+/)*(\w+)", repr(list(self.of([name]).values()))):
                if used in CONFIGURABLES and used not in found:
                    found.append(used)
        return tuple(found)

    def settings(self, names: Sequence[str]) -> dict[str, Any]:
        """What these names run with: the bound values, else the defaults in the source."""
        values = {}
        for name in names:
            for parameter in (parameters(CONFIGURABLES[name]) or {}).values():
                literal, value = parameter.literal()
                if literal:
                    values[f"{name}.{parameter.name}"] = value
        return values | self.of(names)

    def text(self, names: Sequence[str], *, defaults: bool) -> str:
        """These names' bindings, with or without the source's defaults, as a gin file."""
        values = self.settings(names) if defaults else self.of(names)
        lines = [f"{key} = {value!r}" for key, value in sorted(values.items())]
        macros = [f"{name} = {self.bindings[name]!r}" for name in cli.MACROS]
        return "\n".join([*macros, *lines, ""])


def _split(key: str) -> tuple[str, str]:
    name, _, parameter = key.split("/")[-1].rpartition(".")
    return name, parameter


# ------------------------------------------------------------------ reading and checking


def read_config(files: Sequence[str] = (), flags: Sequence[tuple[str, str]] = ()) -> Config:
    """Reads and checks everything the user configured; imports nothing that is configured.

    Args:
        files: gin files in order; later ones win.
        flags: (name, gin text) of --gin.NAME=VALUE flags; these win over files.

    Raises:
        UserError: a missing file, a wrong name or a wrong value, with file and line or flag.
    """
    given = [binding for file in files for binding in _read_file(_find(file, "--gin_file"))]
    for name, text in flags:
        given += _read(io.StringIO(f"{name} = {text}\n"), _flag(name))
    defaults = list(_read_file(os.path.join(CONFIGS, "defaults.gin")))
    chosen = {key: (value, where) for key, value, where in defaults + given}
    sizes: list[Binding] = []
    for macro, folder in (("MODEL", "models"), ("MESH", "mesh")):
        sizes += _read_file(_find_named(folder, *chosen[macro]))
    bindings = defaults + sizes + given
    config = Config({key: value for key, value, _ in bindings})
    for key, where in {key: where for key, _, where in bindings}.items():
        _check_value(config, key, where)
    return config


def _find(file: str, where: str, beside: str = "") -> str:
    for folder in (beside, "", ROOT, CONFIGS):
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return path
    tree = [(parent, name) for parent, _, names in os.walk(CONFIGS) for name in names]
    have = [os.path.relpath(os.path.join(*pair), ROOT) for pair in tree]
    raise UserError(f"{where}: no file {file!r} here or in gin_configs/: {nearest(file, have)}")


def _find_named(folder: str, value: Any, where: str) -> str:
    if str(value).endswith(".gin"):
        return _find(value, where)
    path = os.path.join(CONFIGS, folder, f"{value}.gin")
    if not os.path.isfile(path):
        have = [name.removesuffix(".gin") for name in os.listdir(os.path.dirname(path))]
        hint = nearest(str(value), have, everything="there are")
        raise UserError(f"{where}: no {value!r} in gin_configs/{folder}: {hint}")
    return path


def _read_file(path: str) -> Iterator[Binding]:
    shown = os.path.relpath(path)
    shown = path if shown.startswith("..") else shown
    with open(path, encoding="utf-8") as file:
        yield from _read(file, lambda line: f"{shown}:{line}", os.path.dirname(path))


def _flag(name: str) -> Callable[[int], str]:
    return lambda line: f"--gin.{name}"


def _read(file: TextIO, place: Callable[[int], str], beside: str = "") -> Iterator[Binding]:
    expressions = _Expressions()
    line = 1
    try:
        for statement in config_parser.ConfigParser(file, expressions):
            line = statement.location.line_num
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _read_file(_find(statement.filename, place(line), beside))
            elif isinstance(statement, config_parser.ImportStatement):
                importlib.import_module(statement.module)
            elif isinstance(statement, config_parser.BindingStatement):
                key = _check_names(statement, expressions, place(line))
                yield key, statement.value, place(line)
                expressions.names.clear()
                expressions.macros.clear()
    except SyntaxError as error:
        raise UserError(f"{place(error.lineno or line)}: cannot be read: {error.msg}") from None
    except (tokenize.TokenError, UnicodeDecodeError, ImportError) as error:
        raise UserError(f"{place(line)} or below: cannot be read: {error}") from None


def _check_names(statement: Any, expressions: _Expressions, where: str) -> str:
    scope, name, parameter = statement.scope, statement.selector, statement.arg_name
    macros = [*expressions.macros, *([] if parameter else [name])]
    for macro in macros:
        if macro not in cli.MACROS:
            hint = nearest(macro, cli.MACROS, everything="macros")
            raise UserError(f"{where}: no macro {macro!r}: {hint}")
    for used in [*expressions.names, *([name] if parameter else [])]:
        if used not in CONFIGURABLES and not _imported(used):
            raise UserError(f"{where}: nothing is called {used!r}: {nearest(used, CONFIGURABLES)}")
    accepted = parameters(CONFIGURABLES[name]) if name in CONFIGURABLES and parameter else None
    if accepted is not None and parameter not in accepted:
        hint = nearest(parameter, accepted, everything="it has")
        raise UserError(f"{where}: {name} has no parameter {parameter!r}: {hint}")
    return f"{scope}/" * bool(scope) + (f"{name}.{parameter}" if parameter else name)


def _imported(name: str) -> bool:
    """Whether a module that a gin file imports has registered this name."""
    try:
        return bool(gin.get_configurable(name))
    except (ValueError, KeyError):
        return False


def _check_value(config: Config, key: str, where: str) -> None:
    name, parameter = _split(key)
    if not name:
        expected = Parameter(key, cli.MACROS[key][0], None)
    else:
        known = parameters(CONFIGURABLES[name]) if name in CONFIGURABLES else None
        expected = known[parameter] if known else Parameter(key, None, None)
    value = config.resolved(config.bindings[key])
    if not str(value).startswith("@") and not expected.accepts(value):
        raise UserError(f"{where}: {key} takes {expected.annotation}, found {value!r}.")


# ------------------------------------------------------------------ running


def make_context(
    spec: registry.StageSpec, config: Config, options: Any = None, *, named: bool = True
) -> registry.Context:
    """What `spec` is given; what it declares is imported when it first asks for a function."""
    whole = config
    names = config.reach(spec.uses())
    config = config.seen_by(spec.name)

    def configured(name: str) -> Callable[..., Any]:
        if name.split("/")[-1] not in names:
            raise LookupError(f"stage {spec.name} uses {name}: add it to its StageSpec")
        _inject(names, config)
        return gin.get_configurable(name)

    def other(stage: str, folder: str, changes: Mapping[str, Any]) -> int:
        changed = Config({**whole.bindings, "WORK_DIR": folder, **changes})
        return _run_one(STAGES[stage], changed, options, named=False)

    path = config.macro("WORK_DIR")
    if spec.published and named:
        path = workdir.published(path)

    return registry.Context(
        work=workdir.WorkDir(path),
        macros={name: config.macro(name) for name in cli.MACROS},
        configured=configured,
        settings={key: config.resolved(value) for key, value in config.settings(names).items()},
        options=options,
        named=named,
        targets=[CONFIGURABLES[name] for name in names],
        config_text=config.text(names, defaults=True),
        other=other,
    )


def _inject(names: Sequence[str], config: Config) -> None:
    """Gives gin this configuration, unless it holds the very same."""
    text = config.text(names, defaults=False)
    if _injected[-1:] != [(tuple(names), text)]:
        gin.clear_config()
        for name in names:
            _register(name)
        gin.parse_config(text)
        _injected[:] = [(tuple(names), text)]


_injected: list[tuple[tuple[str, ...], str]] = []  # what gin, itself one for the process, holds


@functools.cache
def _register(name: str) -> None:
    module, _, attribute = CONFIGURABLES[name].partition(":")
    gin.external_configurable(getattr(importlib.import_module(module), attribute), name=name)


def _dry_run(spec: registry.StageSpec, context: registry.Context) -> None:
    print(f"# {spec.name}: operative configuration\n{context.config_text}")
    if spec.describe:
        print(f"# {spec.name}: array shapes\n{spec.describe(context)}\n", flush=True)


def _run_one(spec: registry.StageSpec, config: Config, options: Any, *, named: bool) -> int:
    context = make_context(spec, config, options, named=named)
    if named and options.dry_run:
        _dry_run(spec, context)
        return 0
    distributed.agreed(lambda: _check_start(spec, context))
    return registry.execute(spec, context, force=getattr(options, "force", False))


def _check_start(spec: registry.StageSpec, context: registry.Context) -> None:
    processes = distributed.place_among()[1]
    if processes > 1 and spec.folder is None:
        raise UserError(
            f"{spec.name} is run by one process, found {processes}: unset {distributed.COUNT}."
        )
    makers = {other.folder: other.name for other in STAGES.values() if other.folder}
    registry.check_inputs(spec, context, makers)


def suggester(work_dir: str, *flags: str) -> Callable[..., dict[str, Any]]:
    """The model in use in a WORK_DIR as a function, for notebooks and programs; opened once.

    `suggester("work/mine")("co", history=["tent"])` is what `suggest --json` prints; see
    `stages.lists.answering`. `flags` as on the command line: "--gin.BeamConfig.beams=64".

    Raises:
      UserError: a wrong flag, or a WORK_DIR without a trained model.
    """
    context = context_of("suggest", f"--gin.WORK_DIR={work_dir}", *flags)
    _check_start(STAGES["suggest"], context)
    return lists.answering(context)


def context_of(stage: str, *flags: str) -> registry.Context:
    """What the stage would be given by this command line, for programs that use its parts.

    Raises:
      UserError: a wrong flag.
    """
    command = cli.parse([stage, *flags], STAGES, CONFIGURABLES)
    assert isinstance(command, cli.Command), "flags, not --help"
    config = read_config(command.gin_files, command.bindings)
    return make_context(STAGES[stage], config, command.options)


def _run_all(config: Config, options: Any) -> int:
    own_log = config.macro("LOG") is not None
    specs = [s for s in STAGES.values() if s.in_run and not (own_log and s.name == "simulate")]
    if options.until in (names := [spec.name for spec in specs]):
        specs = specs[: names.index(options.until) + 1]
    if options.dry_run:
        for spec in specs:
            _dry_run(spec, make_context(spec, config, options, named=False))
        plan = registry.plan(specs, lambda spec: make_context(spec, config, options, named=False))
        print(f"# plan for {workdir.WorkDir(config.macro('WORK_DIR')).path}", *plan, sep="\n")
        return 0
    for spec in specs:  # now, for sources may be edited while an early stage runs
        spec.code(make_context(spec, config, options, named=False))
    for spec in specs:
        code = _run_one(spec, config, options, named=False)
        if code:
            return code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 0 done, 2 a mistake the user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = cli.parse(argv, STAGES, CONFIGURABLES)
        if isinstance(command, str):
            print(command)
            return 0 if argv else 2
        if gin is None:
            if command.stage == "doctor":
                return doctor.report(os.getcwd())
            raise UserError("the package gin-config is missing: run `bash launch/prepare.sh`.")
        config = read_config(command.gin_files, command.bindings)
        if not command.options.dry_run:
            distributed.start_processes()
            distributed.only_first_speaks()
        if command.stage == "run":
            return _run_all(config, command.options)
        return _run_one(STAGES[command.stage], config, command.options, named=True)
    except UserError as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    with distributed.failing_at_once():
        sys.exit(main())
