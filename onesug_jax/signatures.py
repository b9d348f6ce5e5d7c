"""What a configurable accepts, read from its signature, and whether a value fits.

`configuration` checks every name and value with it before a stage runs.
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
    """One parameter: its type, None where it has none; `inspect.Parameter.empty`: no default."""

    name: str
    kind: Any
    default: Any


@functools.cache
def parameters(target: str) -> dict[str, Parameter]:
    """What `module:attribute` accepts, by name; imports the module."""
    module, _, attribute = target.partition(":")
    home = importlib.import_module(module)
    found = inspect.signature(getattr(home, attribute)).parameters.values()
    return {
        p.name: Parameter(p.name, _evaluated(p.annotation, vars(home)), p.default) for p in found
    }


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except Exception:  # a name that is imported for type checkers only: no literal is one
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

    A string is not a sequence, a bool is not a number, an int is a float; numbers are finite and
    whole ones have 64 bits, text has no character 0; no literal is an object, which is set by its
    own name.
    """
    if kind is None or kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(
            accepts(one if one is not type(None) else types.NoneType, value) for one in inner
        )
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
        return not inner or all(accepts(inner[0], one) for one in value)
    if origin in _MAPPINGS or kind in _MAPPINGS:
        if not isinstance(value, dict) or not inner:
            return isinstance(value, dict)
        return all(accepts(inner[0], k) and accepts(inner[1], v) for k, v in value.items())
    return False


def is_negative(value: Any) -> bool:
    """Whether a number, or one in a list, is below 0."""
    if isinstance(value, list | tuple):
        return any(map(is_negative, value))
    return isinstance(value, int | float) and value < 0


def describe(kind: Any) -> str:
    """A type as people write it."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def nearest(wrong: str, right: Iterable[str], *, everything: str = "") -> str:
    """The way out of a misspelt name: the nearest right one, else (or also) the whole list.

    Args:
        wrong: what was found.
        right: what could have been meant.
        everything: words before the list of all, which is then always given.
    """
    names = sorted(right)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong.lower(), lower, n=1, cutoff=0.5)
    listing = f"{everything or 'there are'}: {', '.join(names)}"
    if not close:
        return listing
    hint = f"did you mean {lower[close[0]]!r}?"
    return f"{hint} ({listing})" if everything else hint
