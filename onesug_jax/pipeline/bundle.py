"""A model as one folder: all that it takes to suggest with it, laid out like a work directory.

`make` links the files of WORK_DIR into `<stage>/bundle/`; nothing is ever written in place, so the
bundle stays what it was while WORK_DIR changes. It can be copied elsewhere and opened there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from onesug_jax.files import link_file, read_json, write_json
from onesug_jax.pipeline.spec import PROGRAM
from onesug_jax.pipeline.workdir import BUNDLE, Manifest, WorkDir

SOURCES = "sources.json"  # folder of WORK_DIR -> when it was finished


def make(work: WorkDir, stage: str, patterns: Sequence[str]) -> str:
    """The bundle of the model that `stage` is about to leave; returns its folder.

    Args:
      stage: "pretrain" or "rwr", whose folder is being written.
      patterns: files of WORK_DIR that it takes, as `WorkDir.expand` reads them.
    """
    bundle = os.path.join(getattr(work, stage), BUNDLE)
    files = {name: path for pattern in patterns for name, path in work.expand(pattern).items()}
    sources = {}
    for name, path in files.items():
        folder, _, rest = name.replace(f"{stage}.new{os.sep}", f"{stage}{os.sep}").partition(os.sep)
        link_file(path, os.path.join(bundle, folder, rest))
        made = Manifest.read(work.join(folder))
        if folder != stage and made is not None:
            sources[folder] = made.finished
    write_json(os.path.join(bundle, SOURCES), sources)
    return bundle


def stale_note(home: WorkDir, bundle: str) -> str | None:
    """What was made anew after the model in use, in words; None: nothing was."""
    path, changed = os.path.join(bundle, SOURCES), []
    if not os.path.exists(path):
        return None
    for folder, finished in read_json(path, "the sources of a model", "train it anew").items():
        made = Manifest.read(home.join(folder))
        if made is not None and made.finished != finished:
            changed.append(folder)
    if not changed:
        return None
    return (
        f"{', '.join(changed)} in {home.path} changed after the model in use was trained; it "
        f"answers as it was. `{PROGRAM} run --gin.WORK_DIR={home.path}` brings it up to date."
    )
