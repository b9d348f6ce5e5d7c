"""A model as one folder with all files that suggesting needs, laid out like a work directory.

`make` links the files of WORK_DIR into `<stage>/bundle/`. No file is ever written in place, so the
bundle stays the same while WORK_DIR changes. It can be copied elsewhere and opened there:
`onesug_jax.Suggester.load(folder)`, or a command that uses the model with --gin.WORK_DIR=folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from onesug_jax.files import atomic_write, link_file, read_json, write_json
from onesug_jax.pipeline.spec import PROGRAM
from onesug_jax.pipeline.workdir import (
    BUNDLE,
    CONFIG,
    SOURCES,
    Manifest,
    WorkDir,
    settings_file,
)


def make(work: WorkDir, stage: str, patterns: Sequence[str], settings: Sequence[str] = ()) -> str:
    """Makes the bundle of the model in the unfinished folder of `stage`; returns the bundle's path.

    Args:
      stage: "pretrain" or "rwr".
      patterns: the files of WORK_DIR to link, as in `WorkDir.expand`.
      settings: configuration names whose stored settings are copied.
    """
    bundle = os.path.join(getattr(work, stage), BUNDLE)
    files = {name: path for pattern in patterns for name, path in work.expand(pattern).items()}
    sources = {}
    for name, path in files.items():
        folder, _, rest = name.replace(f"{stage}.new{os.sep}", f"{stage}{os.sep}").partition(os.sep)
        link_file(path, os.path.join(bundle, folder, rest))
        manifest = Manifest.read(work.join(folder))
        if folder != stage and manifest is not None:
            sources[folder] = manifest.finished
    with atomic_write(os.path.join(bundle, CONFIG)) as out:
        out.write("".join(_remembered(work.path, settings)).encode())
    write_json(os.path.join(bundle, SOURCES), sources)
    return bundle


def _remembered(path: str, names: Sequence[str]) -> Iterator[str]:
    """The lines of a work directory's stored settings that set one of these names."""
    memory = settings_file(path)
    if os.path.exists(memory):
        with open(memory, encoding="utf-8") as file:
            for line in file:
                if line.split(" = ")[0].split("/")[-1].split(".")[0] in names:
                    yield line


def stale_note(home: WorkDir, bundle: str) -> str | None:
    """A note about folders that changed after the model in use was trained; None if none did."""
    path, changed = os.path.join(bundle, SOURCES), []
    if not os.path.exists(path):
        return None
    for folder, finished in read_json(path, "the sources of a model", "train it anew").items():
        manifest = Manifest.read(home.join(folder))
        if manifest is not None and manifest.finished != finished:
            changed.append(folder)
    if not changed:
        return None
    return (
        f"{', '.join(changed)} in {home.name} changed after the model in use was trained; its "
        f"answers stay the same. `{PROGRAM} run --gin.WORK_DIR={home.name}` brings it up to date."
    )
