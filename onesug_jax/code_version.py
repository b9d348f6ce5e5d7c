"""The version of the code behind a stage's results: hashes of the source files it can reach.

From a stage's function, its helpers in the same file and the functions configured for it, imports
within onesug_jax are followed through the source text, so nothing needs to be listed by hand and
nothing is imported. Comments, docstrings and blank lines do not count. Libraries are not covered.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import textwrap
from collections.abc import Callable, Iterable

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_NAME = os.path.basename(_PACKAGE)
_WITHOUT_EFFECT = ("errors.py", "__init__.py")


def code_version(function: Callable, targets: Iterable[str] = ()) -> dict[str, str]:
    """{source file or function: hash} of all that `function` and `targets` may run.

    Args:
        function: the stage's function; only it and what it uses of its own file count there.
        targets: further entries as `module:attribute`, counted with their whole files.
    """
    nodes = _with_helpers(function)
    own = inspect.getsourcefile(function)
    with open(own, encoding="utf-8") as file:
        lines = file.read().split("\n")
    parts = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
    text = "\n".join(map(textwrap.dedent, parts))
    versions = {f"stage {function.__name__}": text_version(text)}
    seen, waiting = set(), _imported(nodes)
    waiting |= {path for path in map(_path, (t.partition(":")[0] for t in targets)) if path}
    while waiting:
        path = waiting.pop()
        if path in seen or path == own:
            continue
        seen.add(path)
        waiting |= _imported([_tree(path)])
    for path in sorted(seen):
        relative = os.path.relpath(path, _PACKAGE)
        if relative not in _WITHOUT_EFFECT:
            with open(path, encoding="utf-8") as file:
                versions[f"{_NAME}/{relative}"] = text_version(file.read())
    return versions


def text_version(source: str) -> str:
    """Hash of Python source, as 16 hex digits."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    bare = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(bare).encode()).hexdigest()[:16]


@functools.cache
def _tree(path: str) -> ast.Module:
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


def _path(module: str) -> str | None:
    """The file of a module of this package; None for other packages."""
    parts = module.split(".")
    if parts[0] != _NAME:
        return None
    path = os.path.join(_PACKAGE, *parts[1:])
    candidates = (path + ".py", os.path.join(path, "__init__.py"))
    return next(filter(os.path.isfile, candidates), None)


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    modules = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {path for path in map(_path, modules) if path}


def _with_helpers(function: Callable) -> list[ast.AST]:
    """The function and what it mentions, directly or not, of the top level of its own file."""
    tree = _tree(inspect.getsourcefile(function))
    top = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            top[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            top[node.targets[0].id] = node
    line = function.__code__.co_firstlineno
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        if line in (node.lineno, *(decorator.lineno for decorator in node.decorator_list))
    ]
    for node in found:
        for inner in ast.walk(node):
            helper = top.get(inner.id) if isinstance(inner, ast.Name) else None
            if helper is not None and helper not in found:
                found.append(helper)
    return found
