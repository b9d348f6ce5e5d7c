"""Sizes and checksums of a checkpoint's files: written at its commit, verified before reading."""

import json
import os
import zlib

from etils import epath

from onesug_jax.files import is_remote

DIGESTS = "digests.json"


def write_digests(root: epath.Path, step: int) -> None:
    """Writes size and CRC-32 of every file into a checkpoint that orbax is about to commit."""
    if is_remote(root):
        return
    for home in root.glob(f"{step}.orbax-checkpoint-tmp*"):
        digests = {}
        for base, _, names in os.walk(home):
            for path in (epath.Path(base) / name for name in names):
                name = path.relative_to(home)
                if len(name.parts) > 1:  # orbax still rewrites its own files at the top level
                    digests[name.as_posix()] = (path.stat().length, _crc(path))
        (home / DIGESTS).write_text(json.dumps(digests))


def find_damage(home: epath.Path, parts: tuple[str, ...]) -> str:
    """The first damage in a step's folder: missing files, wrong sizes or checksums; or ""."""
    for part in parts:
        if not (home / part).is_dir():
            return f"{part} is missing"
    if not (home / DIGESTS).exists():
        return ""
    try:
        digests = json.loads((home / DIGESTS).read_text())
    except ValueError:
        return f"{DIGESTS} is not readable"
    for name, (size, check) in sorted(digests.items()):
        if name.split("/")[0] not in parts:
            continue
        path = home / name
        if not path.exists():
            return f"{name} is missing"
        length = path.stat().length
        if length != size:
            return f"{name} has {length} bytes, {size} were written"
        if _crc(path) != check:
            return f"{name} does not match its checksum"
    return ""


def _crc(path: epath.Path) -> int:
    check = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            check = zlib.crc32(piece, check)
    return check
