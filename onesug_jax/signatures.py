"""Reads what a function or dataclass accepts from its source text, without importing it.

`main` checks every configuration name with it before anything heavy is imported, so that a typing
mistake in a learning rate is answered in a fraction of a second, and `suggest` can check a file
that also configures training without loading TensorFlow. It understands plain functions, classes
with `__init__` and dataclass fields; anything it cannot read it lets pass.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

_SIMPLE: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "None": type(None),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter: its annotation and default as source text, None where there is none."""

    name: str
    annotation: str | None
    default: str | None

    def literal(self) -> tuple[bool, Any]:
        """(True, value) when the default is a Python literal, else (False, None)."""
        try:
            return True, ast.literal_eval(self.default or "")
        except (ValueError, SyntaxError):
            return False, None

    def accepts(self, value: Any) -> bool:
        """Whether a literal fits the annotation; True where the annotation is not a simple type."""
        names = [part.strip() for part in (self.annotation or "").strip("\"'").split("|")]
        if not all(name in _SIMPLE for name in names):
            return True
        if isinstance(value, bool):
            return "bool" in names
        return any(isinstance(value, _SIMPLE[name]) for name in names)


def _source(module: str) -> str | None:
    """The file of `module`, found without importing it."""
    package, _, rest = module.partition(".")
    if package == __package__:
        path = os.path.join(os.path.dirname(__file__), *rest.split("."))
        for candidate in (path + ".py", os.path.join(path, "__init__.py")):
            if os.path.exists(candidate):
                return candidate
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    return spec.origin if spec and (spec.origin or "").endswith(".py") else None


@functools.cache
def parameters(target: str) -> dict[str, Parameter] | None:
    """What `module:attribute` accepts, by name; None when anything goes or the source tells not."""
    module, _, attribute = target.partition(":")
    path = _source(module)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if getattr(node, "name", None) != attribute:
            continue
        if isinstance(node, ast.FunctionDef):
            return _of_function(node, skip=0)
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _of_function(item, skip=1)
            return _of_fields(node)
    return None


def _of_function(node: ast.FunctionDef, skip: int) -> dict[str, Parameter] | None:
    arguments = node.args
    if arguments.kwarg:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {a.arg: Parameter(a.arg, _text(a.annotation), _text(d)) for a, d in pairs}


def _of_fields(node: ast.ClassDef) -> dict[str, Parameter]:
    fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = _text(item.annotation) or ""
            if not annotation.startswith("ClassVar"):
                name = item.target.id
                fields[name] = Parameter(name, annotation, _text(item.value))
    return fields


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)


def nearest(wrong: str, right: Iterable[str], *, everything: str = "") -> str:
    """The mend for a misspelt name: the nearest right one, else (or also) the whole list.

    Args:
        wrong: what was found.
        right: what could have been meant.
        everything: words before the list of all, which is then always given.
    """
    names = sorted(right)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong.lower(), lower, n=1, cutoff=0.5)
    listing = f"{everything or 'known'}: {', '.join(names)}"
    if not close:
        return listing
    hint = f"did you mean {lower[close[0]]!r}?"
    return f"{hint} ({listing})" if everything else hint
