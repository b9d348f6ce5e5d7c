"""A log in a bucket: listed before a command, copied to this machine when a stage reads it.

The log of `LOG=gs://BUCKET/FOLDER/*.parquet` has its own folder with a table of its files
(`tables.py`). `ingest` stores the versions of the log's objects beside its results, so another
machine recognises an unchanged log and does not copy it.
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
    """Make the table of a log in a bucket; do nothing for a local one. The files are copied unless
    the objects recorded in `made`, the folder of `ingest`, are the same.

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
    local = tables.read(folder)
    if local is not None and local.generation == state:
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
    """Download the missing files of a log, after `look`."""
    if log is None or not is_remote(log):
        return
    table = tables.read(tables.log_folder(log))
    assert table is not None, log
    paths = {name: os.path.join(tables.log_folder(log), name) for name in table.files}
    Store(table.url).download({n: path for n, path in paths.items() if not os.path.exists(path)})


def remember(log: str | None, made: str) -> None:
    """Record the log's objects and their versions in the folder `made`."""
    if log is not None and is_remote(log):
        objects = os.path.join(tables.log_folder(log), f".{OBJECTS}")
        shutil.copyfile(objects, os.path.join(made, OBJECTS))


def _recorded(made: str, log: str) -> dict[str, tuple[str, str]]:
    path = os.path.join(made, OBJECTS)
    if not os.path.exists(path):
        return {}
    record = read_json(path, "the objects of a log", "run ingest again")
    if record["log"] != log:
        return {}
    return {name: (version, digest) for name, (version, digest) in record["objects"].items()}
