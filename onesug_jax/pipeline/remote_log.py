"""A log in a bucket: looked at before a command, copied to this machine when a stage reads it.

The log of `LOG=gs://BUCKET/FOLDER/*.parquet` has a folder of its own, with a table of its files
(`tables.py`). `ingest` leaves beside its results which version of which object they come from; so
on another machine an unchanged log is recognised by that, and not copied.
"""

from __future__ import annotations

import os
import shutil

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, fingerprint_file, is_remote, read_json, write_json
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.store import Store
from onesug_jax.pipeline.tables import Table

OBJECTS = "objects.json"  # in WORK_DIR/log: {"log": URL, "objects": {name: [version, fingerprint]}}


def look(log: str | None, made: str) -> None:
    """Make the table of a log in a bucket; its files are copied unless `made`, the folder that
    `ingest` filled, says that they are the same as then. Other logs are left as they are.

    Raises:
      UserError: there is nothing at this URL, or it cannot be read.
    """
    if log is None or not is_remote(log):
        return
    base, rest = tables.split_log(log)
    store, folder = Store(base), tables.log_folder(log)
    versions = store.versions(rest)
    if not versions:
        raise UserError(
            f"LOG = {log}: expected a file, a folder or a glob that matches files; found nothing "
            "there. See that the bucket and the path are right."
        )
    state = fingerprint({name: version for name, (_, version) in versions.items()})
    here = tables.read(folder)
    if here is not None and here.generation == state:
        return
    shutil.rmtree(folder, ignore_errors=True)
    recorded = _recorded(made, log)
    paths = {name: os.path.join(folder, name) for name in versions}
    if any(recorded.get(name, ("", ""))[0] != version for name, (_, version) in versions.items()):
        print(f"copying {log}: {sum(size for size, _ in versions.values()):,} bytes", flush=True)
        store.download(paths)
        recorded = {name: (versions[name][1], fingerprint_file(paths[name])) for name in paths}
    files = {name: (size, recorded[name][1]) for name, (size, _) in versions.items()}
    tables.write(folder, Table(state, files, base))
    objects = {name: [version, recorded[name][1]] for name, (_, version) in versions.items()}
    write_json(os.path.join(folder, f".{OBJECTS}"), {"log": log, "objects": objects})


def copy(log: str | None) -> None:
    """The files of a log that was looked at are on this machine afterwards."""
    if log is None or not is_remote(log):
        return
    table = tables.read(tables.log_folder(log))
    assert table is not None, log
    paths = {name: os.path.join(tables.log_folder(log), name) for name in table.files}
    Store(table.url).download({n: path for n, path in paths.items() if not os.path.exists(path)})


def remember(log: str | None, made: str) -> None:
    """Leave in `made` which objects its results come from."""
    if log is not None and is_remote(log):
        noted = os.path.join(tables.log_folder(log), f".{OBJECTS}")
        shutil.copyfile(noted, os.path.join(made, OBJECTS))


def _recorded(made: str, log: str) -> dict[str, tuple[str, str]]:
    path = os.path.join(made, OBJECTS)
    if not os.path.exists(path):
        return {}
    noted = read_json(path, "the objects of a log", "run ingest again")
    if noted["log"] != log:
        return {}
    return {name: (version, digest) for name, (version, digest) in noted["objects"].items()}
