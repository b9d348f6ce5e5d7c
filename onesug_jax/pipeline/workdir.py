"""The work directory: one folder a stage, with a manifest that says what its results come from.

A stage writes into `<folder>.new` and takes the place of `<folder>` in one rename when it has
finished; so a folder without `.new` is always finished. A trained stage leaves a `bundle/` in its
folder: all that it takes to suggest with its model, laid out like a work directory, in hard links.
Commands that use the model read the bundle alone, so they answer the same while earlier stages are
made anew.
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

MANIFEST = "_manifest.json"  # what reads a folder of data passes over names beginning with "_"
CONFIG = "config.gin"
CURRENT = "current.json"  # which version of a work directory is in use, where it was updated
BUNDLE = "bundle"
RECORD = "update.json"  # in a version that an update made: {"version", "base", "log", "scores"}
SOURCES = "sources.json"  # in a bundle: folder of WORK_DIR -> when it was finished
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

    Of a URL it is the local folder (`tables.local`), which `mirror.py` fills. `writing` names the
    folder that is being made: its attribute is then `<folder>.new`.
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
        """What a user calls it: the path, or the URL."""
        return tables.shown(self.path)

    def join(self, *parts: str) -> str:
        """A path inside the work directory."""
        return os.path.join(self.path, *parts)

    def folder_of(self, pattern: str) -> str | None:
        """Which top folder of the work directory an input lies in; None outside it."""
        relative = os.path.relpath(self.join(pattern), self.path)
        return None if relative.startswith("..") else relative.split(os.sep)[0]

    def expand(self, pattern: str) -> dict[str, str]:
        """The files which an input means, {name in manifests: path}.

        `pattern` is a path or glob inside the work directory, or an absolute one outside it (a
        log). A folder means all files under it, except hidden ones and what the stages note about
        themselves. Outside files are named from the last part of `pattern` on, so that a log
        may move without being taken for another. Files of a bucket that were not pulled yet are
        among them.
        """
        start = self.path if self.folder_of(pattern) else os.path.dirname(pattern.rstrip(os.sep))
        pattern = self.join(pattern)
        found = {}
        for path in tables.below(pattern) or _files_of(pattern):
            if os.path.basename(path) not in (MANIFEST, CONFIG):
                found[os.path.relpath(path, start)] = path
        return dict(sorted(found.items()))

    def fingerprint(self, path: str) -> str:
        """That of a file which `expand` gave."""
        entry = tables.entry(path)
        return entry[1] if entry else fingerprint_file(path)

    def size(self, path: str) -> int:
        """The bytes of a file which `expand` gave."""
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
    """The work directory of a path: the path itself, or where a trained stage's folder or its
    bundle lies in one, that one. Absolute.
    """
    path = local(path)
    stage = os.path.dirname(path) if os.path.basename(path) == BUNDLE else path
    return os.path.dirname(stage) if os.path.exists(os.path.join(stage, MANIFEST)) else path


def settings_file(path: str) -> str:
    """Where the settings of a path are remembered: in its work directory (`home_of`), of a version
    in the one that was updated; there may be no such file.
    """
    home = home_of(path)
    if os.path.exists(os.path.join(home, RECORD)):  # WORK_DIR/versions/NNNN
        home = os.path.dirname(os.path.dirname(home))
    return os.path.join(home, CONFIG)


def published(path: str) -> str:
    """The work directory in use: that of `path` (`home_of`), or the version of `path` itself that
    an update published.
    """
    home = home_of(path)
    pointer = os.path.join(local(path), CURRENT)
    if not os.path.exists(pointer):
        return home
    version = read_json(pointer, "which version is in use", "write it again")["version"]
    return home if version == "0000" else os.path.join(home, "versions", version)


def model_in_use(path: str) -> str:
    """The bundle that a path means: a bundle itself (here or copied elsewhere), that of a trained
    stage's folder, or of a work directory its preference-aligned one if there is, else that of
    `pretrain`.

    Raises:
      UserError: nothing is trained there.
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
    """Which program makes a result: recorded in manifests, never compared."""
    found = {"onesug_jax": __version__, "commit": _commit()}
    for package in ("jax", "numpy", "orbax-checkpoint"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    """The commit of a checkout; "" where the package is installed."""
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
    """What a stage's results were made from.

    Attributes:
      format: of what the stage writes (`StageSpec.format`).
      inputs: file -> fingerprint.
      settings: {"pretrain.steps": 400, ...}, of `pretrain` and `rwr` "SEED" among them.
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
        """The manifest of `folder`; None where there is none or it cannot be read."""
        try:
            with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
                return cls(**json.load(file))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def differences(
        self, now: Manifest, counts: Callable[[str], bool] = lambda setting: True
    ) -> list[Difference]:
        """Why results made from `self` do not stand for `now`; [] when they do.

        `counts` says which settings are compared. The format and the inputs always are.
        """
        found = []
        if self.format != now.format:
            text = f"{self.stage} writes format {now.format} now, not {self.format}"
            found.append(Difference("format", "", text))
        for kind in ("inputs", "settings"):
            old, new = _plain(getattr(self, kind)), _plain(getattr(now, kind))
            found += [
                Difference(kind, name, _change(name, old, new, values=kind == "settings"))
                for name in sorted(old.keys() | new.keys())
                if old.get(name, _MISSING) != new.get(name, _MISSING)
                and (kind == "inputs" or counts(name))
            ]
        return found


def split_files(log: str) -> dict[str, str]:
    """The splits that a folder of WORK_DIR holds: name -> file."""
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.exists(path)}


def finished(folder: str) -> bool:
    """Whether a stage has filled this folder, and to its end."""
    made = Manifest.read(folder)
    return made is not None and bool(made.finished)


def read_result(path: str) -> dict:
    """A JSON file that an earlier stage wrote."""
    return read_json(path, "what an earlier stage wrote", "run that stage again")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing in which two manifests differ; prints as a clause of a sentence."""

    kind: str  # "format", "inputs" or "settings"
    name: str
    text: str

    def __str__(self) -> str:
        return self.text


_MISSING = object()


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that tuples and lists compare equal."""
    return json.loads(json.dumps(dict(mapping), ensure_ascii=False))


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any], *, values: bool) -> str:
    if name not in new:
        return f"{name} (gone)"
    if name not in old:
        return f"{name} (new)"
    return f"{name} {old[name]!r} -> {new[name]!r}" if values else f"{name} is another"
