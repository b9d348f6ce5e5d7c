"""The parameters of a configurable, read from its signature, and checks of their values.

`configuration` checks every name and value before a stage runs.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter; `kind` is None if it has no annotation, `default` as `inspect` has it."""

    name: str
    kind: Any
    default: Any


@functools.cache
def parameters(target: str) -> dict[str, Parameter]:
    """The parameters of `module:attribute` by name; imports the module."""
    module, _, attribute = target.partition(":")
    home = importlib.import_module(module)
    declared = inspect.signature(getattr(home, attribute)).parameters.values()
    return {
        p.name: Parameter(p.name, _evaluated(p.annotation, vars(home)), p.default) for p in declared
    }


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except Exception:  # imported for type checkers only: an object type, which has no literals
        return types.NoneType


def is_literal(value: Any) -> bool:
    """Whether a default can be written in a gin file."""
    if isinstance(value, list | tuple):
        return all(map(is_literal, value))
    if isinstance(value, dict):
        return all(map(is_literal, [*value, *value.values()]))
    return value is None or isinstance(value, bool | int | float | str)


def accepts(kind: Any, value: Any) -> bool:
    """Whether a literal fits a type: `int | None`, `Sequence[str]`, `tuple[int, int]`, ...

    A string is not a sequence, a bool is not a number, an int is a float. Floats are finite,
    integers have 64 bits, and text has no NUL character. Object types accept no literal.
    """
    if kind is None or kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(member, value) for member in inner)
    if kind is types.NoneType:
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    if kind is int or kind is float and isinstance(value, int):
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    if origin in _SEQUENCES or kind in _SEQUENCES:
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and inner and inner[-1] is not ...:
            return len(inner) == len(value) and all(map(accepts, inner, value))
        return not inner or all(accepts(inner[0], item) for item in value)
    if origin in _MAPPINGS or kind in _MAPPINGS:
        if not isinstance(value, dict) or not inner:
            return isinstance(value, dict)
        return all(accepts(inner[0], k) and accepts(inner[1], v) for k, v in value.items())
    return False


def is_negative(value: Any) -> bool:
    """Whether a number, or any number in a list, is below 0."""
    if isinstance(value, list | tuple):
        return any(map(is_negative, value))
    return isinstance(value, int | float) and value < 0


def describe(kind: Any) -> str:
    """A type as text: `int`, `str | None`."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def nearest(wrong: str, right: Iterable[str], *, everything: str = "") -> str:
    """A hint for a misspelt name: the nearest valid name, or the list of all valid names.

    Args:
        wrong: the misspelt name.
        right: the valid names.
        everything: an introduction to the list of all names; if given, the list is always added.
    """
    names = sorted(right)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong.lower(), lower, n=1, cutoff=0.5)
    listing = f"{everything or 'there are'}: {', '.join(names)}"
    if not close:
        return listing
    hint = f"did you mean {lower[close[0]]!r}?"
    return f"{hint} ({listing})" if everything else hint
