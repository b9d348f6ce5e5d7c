"""The layers: imports in the source text of every file of the package."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "onesug_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

ANYWHERE = ("errors", "arrays", "files", "import_path", "plots", "progress")
# folder -> parts of onesug_jax that it may import, besides itself and ANYWHERE
MAY_IMPORT = {
    "logs": (),
    "train": (),
    "model": (),
    "text_encoder": ("model", "logs", "train"),
    "semantic_ids": ("logs", "train"),
    "retrieval": ("logs", "text_encoder", "semantic_ids"),
    "decode": ("model", "tasks.vocabulary", "tasks.features", "logs.schema"),
    "tasks": ("logs", "semantic_ids", "retrieval"),
    "align": ("model", "logs.schema", "train"),
    "pipeline": ("train.distributed", "train.states", "signatures"),
    "stages": tuple("logs train model text_encoder semantic_ids retrieval decode".split())
    + ("tasks", "align", "evaluate", "serve", "pipeline", "doctor"),
    "evaluate": ("decode", "logs", "tasks", "train.mesh", "retrieval"),
    "serve": tuple("logs decode text_encoder semantic_ids retrieval".split())
    + ("tasks.features", "tasks.vocabulary", "train.checkpoint"),
}
ONLY_IN = {  # package -> the files that may import it
    "gin": ("configuration.py",),
    "tensorflow": ("tasks/seqio_shards.py",),
    "tensorflow_datasets": ("tasks/tfds_log.py",),
    "seqio": ("tasks/seqio_shards.py",),
}


def imported(path: pathlib.Path) -> set[str]:
    """Every dotted name that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


def relative(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_keep_to_the_layers(path):
    folder = relative(path).split("/")[0]
    if folder not in MAY_IMPORT:
        return
    allowed = [f"onesug_jax.{name}" for name in (folder, *ANYWHERE, *MAY_IMPORT[folder])]
    allowed += ["onesug_jax.__version__"]
    wrong = [
        name
        for name in imported(path)
        if within(name, "onesug_jax") and not any(within(name, part) for part in allowed)
    ]
    assert not wrong, f"{relative(path)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_some_packages_are_imported_by_one_file_only(path):
    for package, places in ONLY_IN.items():
        if relative(path) not in places:
            assert not [name for name in imported(path) if within(name, package)]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_imports_main(path):
    if relative(path) == "suggester.py":  # public interface; it loads models as the command line
        return
    assert not [name for name in imported(path) if within(name, "onesug_jax.main")]


def test_every_folder_has_a_layer_and_no_file_is_called_utils():
    folders = {relative(path).split("/")[0] for path in FILES if path.parent != PACKAGE}
    assert folders <= MAY_IMPORT.keys()
    assert not [relative(path) for path in FILES if "utils" in path.name]


def test_the_walk_finds_imports_inside_functions(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    import gin\n    from onesug_jax.model import config\n")
    assert imported(path) == {"gin", "onesug_jax.model.config"}
