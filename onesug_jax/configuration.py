"""The configuration of a run: gin files, flags, and the settings stored in the work directory.

The only file that imports gin. Everything is read and checked before a stage runs: a wrong name, a
wrong type or a missing file is an error with its file and line, or its flag. Library code does
not use gin: `inject` binds the values to the functions in `stages.CONFIGURABLES`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from onesug_jax import cli
from onesug_jax.errors import UserError
from onesug_jax.files import is_remote, mode_of
from onesug_jax.pipeline import workdir
from onesug_jax.pipeline.mirror import Mirror
from onesug_jax.signatures import (
    Parameter,
    accepts,
    describe,
    is_literal,
    is_negative,
    nearest,
    parameters,
)
from onesug_jax.stages import CONFIGURABLES, STAGES

try:
    import gin
    from gin import config_parser
except ModuleNotFoundError:  # `doctor` works without gin
    gin = None

# A folder of the installed package; in a checkout a link to the folder of the repository.
CONFIGS = os.path.realpath(os.path.join(os.path.dirname(__file__), "gin_configs"))
Binding = tuple[str, Any, str]  # key, value, where it was given
# Settings of a single command: not stored in WORK_DIR/config.gin.
_NOT_REMEMBERED = re.compile(r"(WORK_DIR|.*\.profile_steps|update\..*)$")
# Numbers that may be negative though their defaults are not.
_SIGNED = re.compile(r"make_mesh\..*|update\.tolerance")


class _Expression(str):
    """A gin expression inside a value, `@name`, `@name()` or `%MACRO`; its repr has no quotes."""

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass
class _Expressions:
    """gin's parser hook: returns expressions as text, and collects their names for checking."""

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
    """All effective bindings: {"STEPS": 9, "make_mesh.data": 1, "scope/ModelConfig.d_ff": 64}.

    `given` are the bindings of this command, `remembered` those of WORK_DIR/config.gin. `mirror` is
    set if WORK_DIR is in a bucket.
    """

    bindings: dict[str, Any] = dataclasses.field(default_factory=dict)
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    remembered: dict[str, Any] = dataclasses.field(default_factory=dict)
    mirror: Mirror | None = None

    def resolved(self, value: Any) -> Any:
        """A value with its macros replaced; references stay text; tuples become lists."""
        if isinstance(value, _Expression):
            return self.macro(value[1:]) if value.startswith("%") else str(value)
        if isinstance(value, dict):
            return {key: self.resolved(item) for key, item in value.items()}
        return [self.resolved(item) for item in value] if isinstance(value, list | tuple) else value

    def macro(self, name: str) -> Any:
        """The value of a macro."""
        return self.resolved(self.bindings[name])

    def with_bindings(self, changes: Mapping[str, Any]) -> Config:
        """A copy with some bindings changed; a changed WORK_DIR must be local."""
        mirror = None if "WORK_DIR" in changes else self.mirror
        return dataclasses.replace(self, bindings={**self.bindings, **changes}, mirror=mirror)

    def seen_by(self, stage: str) -> Config:
        """A copy without bindings that are scoped to other stages, as `align/ModelConfig.d_ff`."""
        others = STAGES.keys() - {stage}
        own = {k: v for k, v in self.bindings.items() if k.rpartition("/")[0] not in others}
        return dataclasses.replace(self, bindings=own)

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        """The bindings of these names, in all scopes."""
        return {key: value for key, value in self.bindings.items() if _split(key)[0] in names}

    def reach(self, names: Sequence[str]) -> tuple[str, ...]:
        """These names and those that their values refer to."""
        reached = list(names)
        for name in reached:
            for used in re.findall(r"@(?:\w+/)*(\w+)", repr(list(self.of([name]).values()))):
                if used in CONFIGURABLES and used not in reached:
                    reached.append(used)
        return tuple(reached)

    def settings(self, names: Sequence[str]) -> dict[str, Any]:
        """The effective values of these names: the bound ones, else the defaults in the source."""
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
        """The text of WORK_DIR/config.gin: given settings as bindings, all others as comments."""
        stored = {**self.remembered, **self.given}
        stored = {key: value for key, value in stored.items() if not _NOT_REMEMBERED.match(key)}
        if isinstance(stored.get("LOG"), str) and not is_remote(stored["LOG"]):
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
    """Reads and checks the user's configuration and the settings stored in WORK_DIR.

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
    mirror = None
    if is_remote(str(chosen["WORK_DIR"])):
        mirror = Mirror.of(str(chosen["WORK_DIR"]))
        mirror.refresh()
    memory = workdir.settings_file(str(chosen["WORK_DIR"]))
    remembered = list(_read_file(memory)) if mode_of(memory) else []
    places = {key: (value, where) for key, value, where in defaults + remembered + given}
    sizes: list[Binding] = []
    for macro, folder in (("MODEL", "models"), ("MESH", "mesh")):
        sizes += _read_file(_find_named(folder, *places[macro]))
    bindings = defaults + sizes + remembered + given
    config = Config(
        {key: value for key, value, _ in bindings},
        {key: value for key, value, _ in given},
        {key: value for key, value, _ in remembered},
        mirror,
    )
    for key, where in {key: where for key, _, where in bindings}.items():
        check_value(config, key, where)
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
        declared = parameters(CONFIGURABLES[name]).values()
        accepted = [p.name for p in declared if is_literal(p.default)]  # the program sets the rest
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


def check_value(config: Config, key: str, where: str) -> None:
    """Checks the type of the value bound to `key`, and its sign if it must not be negative.

    Raises:
      UserError: it does not fit; `where` is the place of the binding, for the message.
    """
    name, parameter = _split(key)
    value = config.resolved(config.bindings[key])
    if str(value).startswith("@") or (name and name not in CONFIGURABLES):
        return
    if name:
        declared = parameters(CONFIGURABLES[name])[parameter]
    else:
        declared = Parameter(key, cli.MACROS[key][0], None)
    if not accepts(declared.kind, value):
        raise UserError(f"{where}: {key} takes {describe(declared.kind)}, found {value!r}.")
    signed = is_negative(declared.default) or _SIGNED.match(f"{name}.{parameter}")
    if is_negative(value) and not signed:
        raise UserError(f"{where}: {key} takes no number below 0, found {value!r}.")


# ------------------------------------------------------------------ injection


def configured(name: str) -> Callable[..., Any]:
    """A function or class with its injected settings; `scope/name` adds settings of the scope."""
    return gin.get_configurable(name)


def inject(names: Sequence[str], config: Config) -> None:
    """Loads this configuration into gin, unless it is already loaded."""
    text = config.text(names, defaults=False)
    if _injected[-1:] != [(tuple(names), text)]:
        gin.clear_config()
        for name in names:
            _register(name)
        gin.parse_config(text)
        _injected[:] = [(tuple(names), text)]


_injected: list[tuple[tuple[str, ...], str]] = []  # the content of gin's global state


@functools.cache
def _register(name: str) -> None:
    module, _, attribute = CONFIGURABLES[name].partition(":")
    gin.external_configurable(getattr(importlib.import_module(module), attribute), name=name)
