"""The version of the code behind a stage's results: hashes of the source files it can reach.

From a stage's function, its helpers among the stages and the functions configured for it, imports
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
from collections.abc import Callable, Iterable, Sequence

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_NAME = os.path.basename(_PACKAGE)
_WITHOUT_EFFECT = ("errors.py", "__init__.py")


def code_version(function: Callable, targets: Iterable[str] = ()) -> dict[str, str]:
    """{source file or function: hash} of all that `function` and `targets` may run.

    Args:
      function: the stage's function; only it and what it uses of its own folder (the stages) count
        there, function by function. Libraries count file by file.
      targets: further entries as `module:attribute`, counted with their whole files.
    """
    own = os.path.abspath(inspect.getsourcefile(function) or "")
    glue = _with_helpers(own, _first_at(own, function))
    paths = sorted({path for path, _ in glue})
    texts = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
        nodes = [node for where, node in glue if where == path]
        texts += ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
    text = "\n".join(map(textwrap.dedent, texts))
    versions = {f"stage {function.__name__}": text_version(text)}
    seen, waiting = set(), _imported([node for _, node in glue])
    waiting |= {path for path in map(_path, (t.partition(":")[0] for t in targets)) if path}
    while waiting:
        path = waiting.pop()
        if path in seen or os.path.dirname(path) == os.path.dirname(own):
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
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node):
            text = node.body[0]
            end = text.end_lineno or text.lineno
            lines[text.lineno - 1 : end] = [""] * (end - text.lineno + 1)
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


def _first_at(path: str, function: Callable) -> list[ast.stmt]:
    """The function's definition in its file."""
    line = function.__code__.co_firstlineno
    return [
        node
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        if line in (node.lineno, *(decorator.lineno for decorator in node.decorator_list))
    ]


def _with_helpers(path: str, found: Sequence[ast.stmt]) -> list[tuple[str, ast.stmt]]:
    """(file, definition) of these and of what they mention, directly or not, in their own file or
    in the files of its folder.
    """
    every = [(path, node) for node in found]
    for where, node in every:
        top = _top(where)
        beside = _beside(where, [_tree(where)])
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                more = [(where, top.get(inner.id)), *beside.get(inner.id, ())]
            elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                modules = beside.get(inner.value.id, ())
                more = [(file, _top(file).get(inner.attr)) for file, whole in modules if not whole]
            elif isinstance(inner, ast.ImportFrom):
                more = [pair for pairs in _beside(where, [inner]).values() for pair in pairs]
            else:
                continue
            every += [pair for pair in more if pair[1] is not None and pair not in every]
    return every


def _top(path: str) -> dict[str, ast.stmt]:
    """Functions, classes and constants at the top level of a file, by name."""
    top: dict[str, ast.stmt] = {}
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            top[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            top[node.targets[0].id] = node
    return top


def _beside(path: str, nodes: Iterable[ast.AST]) -> dict[str, list[tuple[str, ast.AST | None]]]:
    """Names that `nodes` import from files in the folder of `path`: (file, definition), where a
    name that is a whole file has no definition.
    """
    names: dict[str, list[tuple[str, ast.AST | None]]] = {}
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            for module, name in ((f"{node.module}.{alias.name}", None), (node.module, alias.name)):
                file = _path(module)
                if file and file != path and os.path.dirname(file) == os.path.dirname(path):
                    definition = _top(file).get(name) if name else None
                    if name is None or definition is not None:
                        names.setdefault(alias.asname or alias.name, []).append((file, definition))
                        break
    return names
