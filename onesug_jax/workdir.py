"""The work directory: one folder a stage, with a manifest that says what its results come from.

WORK_DIR/<folder>/_manifest.json is written when a stage starts and again, with the time it
finished, when it ends; so a folder whose manifest has no `finished` was interrupted. Comparing a
manifest with the present gives the reason why a stage must be redone. This file decides nothing
about what a stage reads or how it runs: `registry.py` does.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from typing import Any

from onesug_jax.errors import UserError

MANIFEST = "_manifest.json"  # what reads a folder of data passes over names beginning with "_"
CONFIG = "config.gin"
CURRENT = "current.json"  # which version of a work directory is in use, where it was updated
_WHOLE = 256 * 2**20  # bytes; larger files are known by size, time and both ends
_END = 2**20
FOLDERS = (
    "simulated",
    "log",
    "mined",
    "vocab",
    "encoder",
    "semantic_ids",
    "index",
    "ranking",
    "examples",
    "pretrain",
    "rewards",
    "rwr",
    "cascade",
    "report",
)


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Paths inside one work directory (absolute); every folder of FOLDERS is also an attribute."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.abspath(self.path))

    def __getattr__(self, name: str) -> str:
        if name in FOLDERS:
            return self.join(name)
        raise AttributeError(f"no folder {name!r} in a work directory: {', '.join(FOLDERS)}")

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
        may move without being taken for another.
        """
        start = self.path if self.folder_of(pattern) else os.path.dirname(pattern.rstrip(os.sep))
        pattern = self.join(pattern)
        found = {}
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        for match in matches:
            for path in [match] if os.path.isfile(match) else _files_under(match):
                if os.path.basename(path) in (MANIFEST, CONFIG):
                    continue
                found[os.path.relpath(path, start)] = path
        return dict(sorted(found.items()))


def published(path: str) -> str:
    """The work directory in use: `path` itself, or the version of it that an update published."""
    path = os.path.abspath(path)
    try:
        with open(os.path.join(path, CURRENT), encoding="utf-8") as file:
            version = json.load(file)["version"]
    except FileNotFoundError:
        return path
    return path if version == "0000" else os.path.join(path, "versions", version)


def _files_under(folder: str) -> Iterable[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.join(parent, name)


def fingerprint(path: str) -> str:
    """What a file holds, as 16 hex digits; of a large one size, time and both ends."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _WHOLE:
            for block in iter(lambda: file.read(_END), b""):
                digest.update(block)
        else:
            digest.update(str(os.stat(path).st_mtime_ns).encode())
            digest.update(file.read(_END))
            file.seek(-_END, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:16]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions; recorded in manifests but, alone, no reason to redo a stage."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a stage's results were made from."""

    stage: str
    inputs: Mapping[str, str]  # file -> fingerprint
    config: Mapping[str, Any]  # "pretrain.steps" -> 400
    code: Mapping[str, str]  # "onesug_jax/logs/ingest.py" -> hash
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    started: str = ""
    finished: str | None = None

    def write(self, folder: str, *, finished: bool) -> Manifest:
        """Writes it into `folder`, in one move: there is either the old file or the new one."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        stamp = {"finished": now} if finished else {"started": now, "finished": None}
        stamped = dataclasses.replace(self, **stamp)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, MANIFEST)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(stamped), file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
        return stamped

    @classmethod
    def read(cls, folder: str) -> Manifest | None:
        """The manifest of `folder`; None where there is none or it cannot be read."""
        try:
            with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
                return cls(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def difference(self, now: Manifest) -> str | None:
        """Why results made from `self` do not stand for `now`; None when they do."""
        for what in ("inputs", "config", "code"):
            old, new = _plain(getattr(self, what)), _plain(getattr(now, what))
            changes = [
                _change(name, old, new, values=what == "config")
                for name in sorted(old.keys() | new.keys())
                if old.get(name, _MISSING) != new.get(name, _MISSING)
            ]
            if changes:
                more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
                return f"{what} changed: {', '.join(changes[:2])}{more}"
        return None


_MISSING = object()


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that tuples and lists compare equal."""
    return json.loads(json.dumps(dict(mapping), ensure_ascii=False))


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any], *, values: bool) -> str:
    if name not in new:
        return f"{name} (gone)"
    if name not in old:
        return f"{name} (new)"
    return f"{name} {old[name]!r} -> {new[name]!r}" if values else name


def stale_reason(folder: str, now: Manifest) -> str | None:
    """Why the results in `folder` cannot be used as they are, in words; None when they can."""
    before = Manifest.read(folder)
    if before is None:
        return "never run"
    difference = before.difference(now)
    if difference is None and before.finished is None:
        return "never finished"
    return difference


def make_ready(folder: str, now: Manifest, *, resumable: bool) -> bool:
    """Readies `folder` for a stage's results; True when an interrupted run is to be resumed there.

    Args:
        folder: the stage's folder.
        now: what the results will be made from.
        resumable: whether to keep what an interrupted run made from the very same things has left;
            everything else is removed.

    Raises:
        UserError: the folder holds files which no stage put there.
    """
    before = Manifest.read(folder)
    if resumable and before and before.finished is None and before.difference(now) is None:
        return True
    if os.path.isdir(folder) and os.listdir(folder):
        if not os.path.exists(os.path.join(folder, MANIFEST)):
            raise UserError(
                f"{folder} holds files which no stage made (it has no {MANIFEST}), so it is left "
                "alone. Move them away or choose another --gin.WORK_DIR."
            )
        old = (
            folder + ".old"
        )  # moved first: killed half-way, no folder is left without its manifest
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        shutil.rmtree(old)
    os.makedirs(folder, exist_ok=True)
    return False
