"""The versions of a work directory that `update` made, and the pointer to the one in use.

WORK_DIR/current.json holds {"version", "published"}: the version in use, and all versions ever
published with the fingerprint of their logs. It is replaced atomically, so a version is published
once or not at all. `rollback` sets it to the previous version; the version left stays in
`published`, so no update trains on its log again.
"""

from __future__ import annotations

import os
import shutil

from onesug_jax.errors import UserError
from onesug_jax.files import read_json, write_json
from onesug_jax.pipeline.workdir import CURRENT, NEW, RECORD

FIRST = "0000"  # WORK_DIR itself


def published(home: str) -> dict[str, str]:
    """All versions ever in use, in order, with the fingerprint of the log that each was trained on;
    the first is WORK_DIR itself.
    """
    path = os.path.join(home, CURRENT)
    return _pointer(path)["published"] if os.path.exists(path) else {FIRST: ""}


def in_use(home: str) -> str:
    """The version in use."""
    path = os.path.join(home, CURRENT)
    return _pointer(path)["version"] if os.path.exists(path) else FIRST


def _pointer(path: str) -> dict:
    return read_json(path, "which version is in use", "write it again, or remove it")


def record(folder: str) -> dict | None:
    """The record of a version by its update; None if the folder is not a version."""
    path = os.path.join(folder, RECORD)
    if not os.path.exists(path):
        return None
    return read_json(path, "the record of a version", "remove the folder of this version")


def made(home: str) -> list[str]:
    """The numbers of all finished versions on the disk, including refused ones."""
    folder = os.path.join(home, "versions")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name.split(".")[0] for name in names if name[:4].isdigit() and not name.endswith(NEW)]


def following(home: str) -> str:
    """The number of the next version."""
    return f"{1 + max(map(int, [*made(home), *published(home)])):04d}"


def holding(home: str, log: str) -> str | None:
    """The published version that was trained on the log with this fingerprint, if any."""
    return next((version for version, trained in published(home).items() if trained == log), None)


def unpublished(home: str) -> list[str]:
    """Finished versions that were never in use: their update was killed before publishing them."""
    ever = published(home)
    return [v for v in made(home) if v not in ever and record(_folder(home, v))]


def publish(home: str, version: str) -> None:
    """Puts a finished version in use."""
    log = (record(_folder(home, version)) or {}).get("log", "")
    content = {"version": version, "published": {**published(home), version: log}}
    write_json(os.path.join(home, CURRENT), content)


def before(home: str) -> str:
    """The version that `rollback` returns to: the one that the version in use was made from.

    Raises:
      UserError: there is none.
    """
    version = in_use(home)
    if version == FIRST:
        raise UserError(f"{home} serves the model it was made with; there is no version before it")
    base = (record(_folder(home, version)) or {}).get("base", ".")
    previous = FIRST if base == "." else os.path.basename(base)
    if previous != FIRST and not os.path.isdir(_folder(home, previous)):
        raise UserError(f"{home}: version {previous}, before {version}, was removed to save space")
    return previous


def rollback(home: str) -> tuple[str, str]:
    """Returns to the previous version; returns (the version left, the version now in use)."""
    left, back = in_use(home), before(home)
    write_json(os.path.join(home, CURRENT), {"version": back, "published": published(home)})
    return left, back


def prune(home: str, retained: int) -> list[str]:
    """Removes the oldest versions beyond `retained`, except the one in use and the one before it;
    returns the removed ones.
    """
    current = in_use(home)
    needed = {current, FIRST} | ({before(home)} if current != FIRST else set())
    ever = [v for v in published(home) if v != FIRST and os.path.isdir(_folder(home, v))]
    removed = [v for v in ever[: max(0, len(ever) - retained)] if v not in needed]
    for version in removed:
        shutil.rmtree(_folder(home, version))
    return removed


def _folder(home: str, version: str) -> str:
    return home if version == FIRST else os.path.join(home, "versions", version)
