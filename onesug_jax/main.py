"""The only entry, `python -m onesug_jax.main STAGE ...`, and the only file that imports gin.

Configuration is read in one order: defaults.gin, the model's file, the mesh's file, what WORK_DIR
remembers (its config.gin), --gin_file in turn, flags; later wins. Then every stage of the command
is checked and planned, and only then is anything written. Library code knows nothing of gin: a
stage gets its functions, already configured, from its Context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from onesug_jax import cli, doctor
from onesug_jax.errors import UserError, file_error, plain, refused
from onesug_jax.files import atomic_write
from onesug_jax.pipeline import bundle, workdir
from onesug_jax.pipeline.lock import WriterLock
from onesug_jax.pipeline.plan import Step, check_folder, check_inputs, plan
from onesug_jax.pipeline.runner import execute
from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.signatures import accepts, describe, is_literal, nearest, parameters
from onesug_jax.stages import CONFIGURABLES, STAGES, checks, sweeping
from onesug_jax.train import distributed

try:
    import gin
    from gin import config_parser
except ModuleNotFoundError:  # `doctor` still answers
    gin = None

# Inside the installed package; of a checkout, what the link there leads to.
CONFIGS = os.path.realpath(os.path.join(os.path.dirname(__file__), "gin_configs"))
_EXTRAS = dict.fromkeys(("seqio", "tensorflow", "tensorflow_datasets"), "seqio")
_EXTRAS |= dict.fromkeys(("fastapi", "pydantic", "starlette", "uvicorn"), "serve")
Binding = tuple[str, Any, str]  # key, value, where it was given
# Given for one command, never remembered.
_NOT_REMEMBERED = re.compile(r"(WORK_DIR|.*\.profile_steps|update\..*)$")


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
    """All bindings in force: {"STEPS": 9, "make_mesh.data": 1, "scope/ModelConfig.d_ff": 64}.

    `given` are those of this command, `remembered` those of WORK_DIR/config.gin.
    """

    bindings: dict[str, Any] = dataclasses.field(default_factory=dict)
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    remembered: dict[str, Any] = dataclasses.field(default_factory=dict)

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

    def with_bindings(self, changes: Mapping[str, Any]) -> Config:
        """The same with some bindings changed."""
        return dataclasses.replace(self, bindings={**self.bindings, **changes})

    def seen_by(self, stage: str) -> Config:
        """Without what is scoped to another stage: `align/make_optimizer...` is align's alone."""
        others = STAGES.keys() - {stage}
        own = {k: v for k, v in self.bindings.items() if k.rpartition("/")[0] not in others}
        return dataclasses.replace(self, bindings=own)

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
        values = {
            f"{name}.{parameter.name}": parameter.default
            for name in names
            for parameter in parameters(CONFIGURABLES[name]).values()
            if is_literal(parameter.default)
        }
        return values | self.of(names)

    def text(self, names: Sequence[str], *, defaults: bool) -> str:
        """These names' bindings, with or without the source's defaults, as a gin file."""
        values = self.settings(names) if defaults else self.of(names)
        lines = [f"{key} = {value!r}" for key, value in sorted(values.items())]
        macros = [f"{name} = {self.bindings[name]!r}" for name in cli.MACROS]
        return "\n".join([*macros, *lines, ""])

    def memory(self) -> str:
        """WORK_DIR/config.gin: what was given to commands that built it, as bindings; all else in
        force as comments.
        """
        stored = {**self.remembered, **self.given}
        stored = {key: value for key, value in stored.items() if not _NOT_REMEMBERED.match(key)}
        if isinstance(stored.get("LOG"), str):
            stored["LOG"] = os.path.abspath(stored["LOG"])
        lines = ["# The settings of this work directory; every command on it reads them."]
        lines += [f"{key} = {value!r}" for key, value in sorted(stored.items())]
        names = sorted({name for spec in STAGES.values() if spec.in_run for name in spec.uses()})
        rest = {k: self.bindings[k] for k in cli.MACROS if k != "WORK_DIR"} | self.settings(names)
        lines += ["", "# Also in force, from the program and the files of MODEL and MESH:"]
        lines += [f"# {k} = {value!r}" for k, value in sorted(rest.items()) if k not in stored]
        return "\n".join([*lines, ""])


def _split(key: str) -> tuple[str, str]:
    name, _, parameter = key.split("/")[-1].rpartition(".")
    return name, parameter


# ------------------------------------------------------------------ reading and checking


def read_config(files: Sequence[str] = (), flags: Sequence[tuple[str, str]] = ()) -> Config:
    """Reads and checks everything the user configured, and what WORK_DIR remembers.

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
    chosen = {key: value for key, value, _ in defaults + given}
    memory = workdir.settings_file(str(chosen["WORK_DIR"]))
    remembered = list(_read_file(memory)) if os.path.isfile(memory) else []
    places = {key: (value, where) for key, value, where in defaults + remembered + given}
    sizes: list[Binding] = []
    for macro, folder in (("MODEL", "models"), ("MESH", "mesh")):
        sizes += _read_file(_find_named(folder, *places[macro]))
    bindings = defaults + sizes + remembered + given
    config = Config(
        {key: value for key, value, _ in bindings},
        {key: value for key, value, _ in given},
        {key: value for key, value, _ in remembered},
    )
    for key, where in {key: where for key, _, where in bindings}.items():
        _check_value(config, key, where)
    return config


def _find(file: str, where: str, beside: str = "") -> str:
    for folder in (beside, "", os.path.dirname(CONFIGS), CONFIGS):
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return path
    tree = [(parent, name) for parent, _, names in os.walk(CONFIGS) for name in names]
    have = [os.path.relpath(os.path.join(*pair), os.path.dirname(CONFIGS)) for pair in tree]
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
    if parameter and name in CONFIGURABLES:
        accepted = parameters(CONFIGURABLES[name])
        if parameter not in accepted:
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
    value = config.resolved(config.bindings[key])
    if str(value).startswith("@") or (name and name not in CONFIGURABLES):
        return
    kind = cli.MACROS[key][0] if not name else parameters(CONFIGURABLES[name])[parameter].kind
    if not accepts(kind, value):
        raise UserError(f"{where}: {key} takes {describe(kind)}, found {value!r}.")


# ------------------------------------------------------------------ contexts


def make_context(
    spec: StageSpec, config: Config, options: Any = None, *, named: bool = True
) -> Context:
    """What `spec` is given; what it declares is imported when it first asks for a function.

    Raises:
      UserError: it uses the trained model, and there is none.
    """
    whole = config
    names = config.reach(spec.uses())
    config = config.seen_by(spec.name)

    def configured(name: str) -> Callable[..., Any]:
        if name.split("/")[-1] not in names:
            raise LookupError(f"stage {spec.name} uses {name}: add it to its StageSpec")
        _inject(names, config)
        return gin.get_configurable(name)

    def other(stage: str, folder: str, changes: Mapping[str, Any]) -> int:
        changed = whole.with_bindings({"WORK_DIR": folder, **changes})
        context = make_context(STAGES[stage], changed, options, named=False)
        return execute(STAGES[stage], context, may_replace=True)

    path = config.macro("WORK_DIR")
    home = workdir.WorkDir(path)
    work = home
    if spec.uses_model:
        home = workdir.WorkDir(workdir.published(home.path))
        with contextlib.suppress(UserError):  # the checks say so, where it will not be made before
            work = workdir.WorkDir(workdir.model_in_use(path))
    return Context(
        work=work,
        home=home,
        macros={name: config.macro(name) for name in cli.MACROS},
        configured=configured,
        settings={key: config.resolved(value) for key, value in config.settings(names).items()},
        options=options,
        given=frozenset(config.given),
        named=named,
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


def context_of(stage: str, *flags: str) -> Context:
    """What the stage would be given by this command line, for programs that use its parts.

    Raises:
      UserError: a wrong flag, or no trained model where the stage uses it.
    """
    command = cli.parse([stage, *flags], STAGES, CONFIGURABLES)
    assert isinstance(command, cli.Command), "flags, not --help"
    config = read_config(command.gin_files, command.bindings)
    context = make_context(STAGES[stage], config, command.options)
    if STAGES[stage].uses_model:
        workdir.model_in_use(config.macro("WORK_DIR"))
    return context


# ------------------------------------------------------------------ running


def _stages(stage: str, config: Config, options: Any) -> list[StageSpec]:
    """The stages of a command: one, or for `run` all from --from to --until."""
    if stage != "run":
        return [STAGES[stage]]
    own_log = config.macro("LOG") is not None
    specs = [s for s in STAGES.values() if s.in_run and not (own_log and s.name == "simulate")]
    names = [spec.name for spec in specs]
    first = names.index(options.first) if options.first in names else 0
    last = names.index(options.until) if options.until in names else len(names) - 1
    if first > last:
        raise UserError(f"run --from={options.first} --until={options.until}: nothing lies between")
    return specs[first : last + 1]


def _check(
    specs: Sequence[StageSpec], contexts: Mapping[str, Context], config: Config, options: Any
) -> list[Step]:
    """Everything that can be checked before a byte is written; returns the plan.

    Raises:
      UserError: the first thing that does not fit.
    """
    makers = {spec.folder: spec.name for spec in STAGES.values() if spec.folder}
    made: list[str] = []
    for spec in specs:
        context = contexts[spec.name]
        if distributed.place_among()[1] > 1 and spec.folder is None:
            raise UserError(
                f"{spec.name} is run by one process, found {distributed.place_among()[1]}: unset "
                f"{distributed.COUNT}."
            )
        if spec.uses_model and not {"pretrain", "rwr"} & set(made):
            workdir.model_in_use(config.macro("WORK_DIR"))
        checks.construct(spec, context, CONFIGURABLES)
        if spec.check:
            spec.check(context)
        check_inputs(spec, context, makers, made)
        made += [spec.folder] if spec.folder else []
    steps = plan(specs, contexts, options.restart, _replaceable(options))
    if any(spec.folder for spec in specs):
        first = contexts[specs[0].name]
        log = first.log if any(spec.name == "ingest" for spec in specs) else None
        space = sum(checks.state_bytes(step, contexts[step.spec.name]) for step in steps)
        check_folder(workdir.WorkDir(config.macro("WORK_DIR")), steps, log, space)
    return steps


def _replaceable(options: Any) -> list[str]:
    """The stages whose trained states this command may replace: from --restart on."""
    order = [spec.name for spec in STAGES.values() if spec.folder]
    return order[order.index(options.restart) :] if options.restart else []


def _dry_run(specs, contexts: Mapping[str, Context], steps: Sequence[Step], path: str) -> None:
    for spec in specs:
        context = contexts[spec.name]
        print(f"# {spec.name}: operative configuration\n{context.config_text}")
        if spec.describe:
            print(f"# {spec.name}: what it makes\n{spec.describe(context)}\n", flush=True)
    if steps:
        print(f"# plan for {path}", *(step.line() for step in steps), sep="\n")


def _notes(spec: StageSpec, context: Context, config: Config) -> Iterator[str]:
    """What the user should know before the command speaks: changed settings, a stale model."""
    names = set(config.given) & set(config.bindings)
    for key in sorted(names & set(config.remembered)):
        old, new = config.remembered[key], config.given[key]
        if old != new and not (key == "LOG" and os.path.abspath(str(new)) == old):
            yield f"{key}: {old!r} in {workdir.CONFIG}, {new!r} now"
    if spec.uses_model and context.work.path != context.home.path:
        note = bundle.stale_note(context.home, context.work.path)
        if note:
            yield note


def _run(stage: str, config: Config, options: Any) -> int:
    specs = _stages(stage, config, options)
    home = workdir.WorkDir(config.macro("WORK_DIR"))
    context_for = functools.partial(
        make_context, config=config, options=options, named=stage != "run"
    )
    contexts = {spec.name: context_for(spec) for spec in specs}
    steps: list[Step] = []
    distributed.run_on_primary_and_broadcast(
        lambda: steps.extend(_check(specs, contexts, config, options))
    )
    if options.dry_run:
        _dry_run(specs, contexts, steps, home.path)
        return 0
    for note in _notes(specs[-1], contexts[specs[-1].name], config):
        print(f"note: {note}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        if distributed.is_primary():
            if stage == "update" or any(spec.folder and not spec.uses_model for spec in specs):
                stack.enter_context(WriterLock(home.path, stage))
            if any(spec.folder and not spec.uses_model for spec in specs):
                _remember(home.join(workdir.CONFIG), config)
            elif specs[0].folder:
                stack.enter_context(WriterLock(contexts[stage].home.report, stage))
        for spec in specs:
            code = execute(
                spec,
                context_for(spec),
                restart=spec.name == options.restart,
                may_replace=spec.name in _replaceable(options),
            )
            if code:
                return code
    return 0


def _remember(path: str, config: Config) -> None:
    text = config.memory()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
    with atomic_write(path) as out:
        out.write(text.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 0 done, 2 a mistake the user can fix."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = cli.parse(argv, STAGES, CONFIGURABLES)
        if isinstance(command, str):
            print(command)
            return 0 if argv else 2
        if vars(command.options).setdefault("restart", None) == "run":
            raise UserError("run --restart=STAGE: expected the first stage to make anew.")
        if gin is None:
            if command.stage == "doctor":
                return doctor.report(os.getcwd())
            raise UserError("the package gin-config is missing: run `bash launch/prepare.sh`.")
        config = read_config(command.gin_files, command.bindings)
        for name, value in sweeping.bindings_of(command.options):
            swept = (name, cli.quoted(name, value))
            read_config(command.gin_files, [*command.bindings, swept])
        if not command.options.dry_run:
            distributed.start_processes()
            distributed.only_primary_speaks()
        return _run(command.stage, config, command.options)
    except UserError as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"error: {argv[0]} needs the package {error.name}, which is not installed: "
            f"pip install 'onesug_jax[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # where no stage had a better sentence
        if not refused(error):
            raise
        path = error.filename or "a file in WORK_DIR"
        print(f"error: {file_error(str(path), 'reading or writing', error)}", file=sys.stderr)
        return 2


def script() -> NoReturn:
    """The console script `onesug`: `main`, then the end of the process."""
    with distributed.failing_at_once():
        sys.exit(main())


if __name__ == "__main__":
    script()
