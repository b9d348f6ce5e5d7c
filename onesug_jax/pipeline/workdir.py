"""The work directory: one folder per stage, with a manifest of the inputs and settings behind it.

A stage writes into `<folder>.new`, which replaces `<folder>` in one rename when the stage has
finished; so a folder without `.new` is always finished. A trained stage leaves a `bundle/` in its
folder: hard links to all files that suggesting needs, laid out like a work directory. Commands that
use the model read only the bundle, so their answers stay the same while earlier stages run again.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from onesug_jax import __version__
from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint_file, mode_of, names_below, read_json, write_json
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.tables import local

MANIFEST = "_manifest.json"  # readers of data folders ignore names that begin with "_"
CONFIG = "config.gin"
CURRENT = "current.json"  # in an updated work directory: the version in use
BUNDLE = "bundle"
RECORD = "update.json"  # in a version that an update made: {"version", "base", "log", "scores"}
SOURCES = "sources.json"  # in a bundle: folder of WORK_DIR -> time when it was finished
NEW = ".new"
SPLITS = ("train", "dev", "test")
FOLDERS = (
    "simulated",
    "log",
    "mined",
    "vocab",
    "encoder",
    "semantic_ids",
    "index",
    "examples",
    "pretrain",
    "rewards",
    "rwr",
    "cascade",
    "report",
)


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Paths inside one work directory (absolute); every folder of FOLDERS is also an attribute.

    The path of a URL is its local folder (`tables.local`), which `mirror.py` fills. `writing` names
    the folder that is being written: its attribute is then `<folder>.new`.
    """

    path: str
    writing: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", local(self.path))

    def __getattr__(self, name: str) -> str:
        if name in FOLDERS:
            return self.join(name + NEW * (name == self.writing))
        raise AttributeError(f"no folder {name!r} in a work directory: {', '.join(FOLDERS)}")

    @property
    def name(self) -> str:
        """The path or the URL, as the user gave it."""
        return tables.shown(self.path)

    def join(self, *parts: str) -> str:
        """A path inside the work directory."""
        return os.path.join(self.path, *parts)

    def folder_of(self, pattern: str) -> str | None:
        """The top folder of the work directory that contains an input; None if it is outside."""
        relative = os.path.relpath(self.join(pattern), self.path)
        return None if relative.startswith("..") else relative.split(os.sep)[0]

    def expand(self, pattern: str) -> dict[str, str]:
        """The files of an input, {name in manifests: path}.

        `pattern` is a path or glob inside the work directory, or an absolute one outside it (a
        log). A folder stands for all files under it, except hidden ones, manifests and config.gin.
        Names of outside files start with the last part of `pattern`, so that a log may move and is
        still the same input. Files of a bucket that were not pulled yet are included.
        """
        start = self.path if self.folder_of(pattern) else os.path.dirname(pattern.rstrip(os.sep))
        pattern = self.join(pattern)
        files = {}
        for path in tables.below(pattern) or _files_of(pattern):
            if os.path.basename(path) not in (MANIFEST, CONFIG):
                files[os.path.relpath(path, start)] = path
        return dict(sorted(files.items()))

    def fingerprint(self, path: str) -> str:
        """The fingerprint of a file from `expand`."""
        entry = tables.entry(path)
        return entry[1] if entry else fingerprint_file(path)

    def size(self, path: str) -> int:
        """The number of bytes of a file from `expand`."""
        entry = tables.entry(path)
        return entry[0] if entry else os.path.getsize(path)


def _files_of(pattern: str) -> Iterable[str]:
    matches = [pattern] if mode_of(pattern) else glob.glob(pattern, recursive=True)
    for match in matches:
        if os.path.isfile(match):
            yield match
        elif os.path.isdir(match):
            yield from (os.path.join(match, name) for name in names_below(match))


def home_of(path: str) -> str:
    """The absolute path of a work directory, from its path or that of a trained stage or bundle."""
    path = local(path)
    stage = os.path.dirname(path) if os.path.basename(path) == BUNDLE else path
    return os.path.dirname(stage) if os.path.exists(os.path.join(stage, MANIFEST)) else path


def settings_file(path: str) -> str:
    """The file of the stored settings: in the work directory (`home_of`), for a version in the
    updated work directory. It may not exist.
    """
    home = home_of(path)
    if os.path.exists(os.path.join(home, RECORD)):  # WORK_DIR/versions/NNNN
        home = os.path.dirname(os.path.dirname(home))
    return os.path.join(home, CONFIG)


def published(path: str) -> str:
    """The work directory in use: that of `path` (`home_of`), or the version of `path` that an
    update published.
    """
    home = home_of(path)
    pointer = os.path.join(local(path), CURRENT)
    if not os.path.exists(pointer):
        return home
    version = read_json(pointer, "which version is in use", "write it again")["version"]
    return home if version == "0000" else os.path.join(home, "versions", version)


def model_in_use(path: str) -> str:
    """The bundle of a path, which is a bundle itself (or a copy of one), a trained stage's folder,
    or a work directory: then the bundle of `rwr` if there is one, else that of `pretrain`.

    Raises:
      UserError: there is no trained model.
    """
    given = local(path)
    if os.path.exists(os.path.join(given, SOURCES)):
        return given
    home = published(path)
    for folder in (given, os.path.join(home, "rwr"), os.path.join(home, "pretrain")):
        bundle = os.path.join(folder, BUNDLE)
        if mode_of(bundle):
            return bundle
    raise UserError(
        f"{tables.shown(home)}: no trained model here; first run `python -m onesug_jax.main run "
        f"--gin.WORK_DIR={path}`."
    )


@functools.cache
def provenance() -> dict[str, str]:
    """Versions of the program and its packages: recorded in manifests, never compared."""
    versions = {"onesug_jax": __version__, "commit": _commit()}
    for package in ("jax", "numpy", "orbax-checkpoint"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _commit() -> str:
    """The commit of a checkout; "" for an installed package."""
    git = os.path.join(os.path.dirname(__file__), "..", "..", ".git")
    try:
        with open(os.path.join(git, "HEAD"), encoding="ascii") as file:
            head = file.read().strip()
        if head.startswith("ref: "):
            with open(os.path.join(git, head[5:]), encoding="ascii") as file:
                head = file.read().strip()
        return head[:12]
    except OSError:
        return ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The inputs and settings that a stage's results were made from.

    Attributes:
      format: of the stage's files (`StageSpec.format`).
      inputs: file -> fingerprint.
      settings: {"pretrain.steps": 400, ...}; for `pretrain` and `rwr` also "SEED".
      provenance: versions of the program and of packages; never compared.
    """

    stage: str
    format: int
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    started: str = ""
    finished: str | None = None

    def write(self, folder: str, *, finished: bool) -> Manifest:
        """Writes it into `folder`, stamped with the time."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        stamp = {"finished": now} if finished else {"started": now, "finished": None}
        stamped = dataclasses.replace(self, **stamp)
        write_json(os.path.join(folder, MANIFEST), dataclasses.asdict(stamped), ensure_ascii=False)
        return stamped

    @classmethod
    def read(cls, folder: str) -> Manifest | None:
        """The manifest of `folder`; None if it is missing or cannot be read."""
        try:
            with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
                return cls(**json.load(file))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def differences(
        self, now: Manifest, counts: Callable[[str], bool] = lambda setting: True
    ) -> list[Difference]:
        """The differences between two manifests: format, inputs, and settings that `counts` admits;
        [] if results of `self` are valid for `now`.
        """
        differences = []
        if self.format != now.format:
            text = f"{self.stage} writes format {now.format} now, not {self.format}"
            differences.append(Difference("format", "", text))
        for kind in ("inputs", "settings"):
            old, new = _plain(getattr(self, kind)), _plain(getattr(now, kind))
            differences += [
                Difference(kind, name, _change(name, old, new, values=kind == "settings"))
                for name in sorted(old.keys() | new.keys())
                if old.get(name, _MISSING) != new.get(name, _MISSING)
                and (kind == "inputs" or counts(name))
            ]
        return differences


def split_files(log: str) -> dict[str, str]:
    """The splits in a folder of WORK_DIR: name -> file."""
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.exists(path)}


def finished(folder: str) -> bool:
    """Whether a stage has finished this folder."""
    manifest = Manifest.read(folder)
    return manifest is not None and bool(manifest.finished)


def read_result(path: str) -> dict:
    """A JSON file that an earlier stage wrote."""
    return read_json(path, "what an earlier stage wrote", "run that stage again")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One difference of two manifests; prints as a clause of a sentence."""

    kind: str  # "format", "inputs" or "settings"
    name: str
    text: str

    def __str__(self) -> str:
        return self.text


_MISSING = object()


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping after a round trip through JSON, so that tuples and lists compare equal."""
    return json.loads(json.dumps(dict(mapping), ensure_ascii=False))


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any], *, values: bool) -> str:
    if name not in new:
        return f"{name} (gone)"
    if name not in old:
        return f"{name} (new)"
    return f"{name} {old[name]!r} -> {new[name]!r}" if values else f"{name} is another"
