"""A work directory in a bucket: stages read and write its local folder; results are pushed.

    WORK_DIR/_units/UNIT.json        the finished generation of a result, and its files
    WORK_DIR/_units/UNIT.new.json    the same for a training that is not finished
    WORK_DIR/UNIT/GENERATION/...     the objects of one generation
    WORK_DIR/config.gin, current.json

A unit is the folder of a stage, one report, or one version. Many objects cannot be renamed in one
step, so each result has its own objects, and one small object, written last, puts it in use. An
interrupted push leaves the previous result in use; the next push removes its objects. The bucket
determines what is finished: local folders of other generations are removed. A training writes its
checkpoints to the bucket itself, below the generation of its future result.

Small files are pulled at once, others when a stage reads them. A writer holds the lease of
`lease.py`; processes of one host share a local folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from onesug_jax.files import (
    atomic_write,
    fingerprint_file,
    is_remote,
    names_below,
    replace_folder,
)
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.lease import Lease
from onesug_jax.pipeline.store import Gone, Store
from onesug_jax.pipeline.tables import Table
from onesug_jax.pipeline.workdir import CONFIG, CURRENT, NEW, SOURCES
from onesug_jax.train import distributed
from onesug_jax.train.states import BEST, CHECKPOINTS, States, is_state

UNITS = "_units"
SMALL = 2**20  # bytes; files up to this size are pulled with the table
_FETCHING: dict[str, threading.Lock] = {}  # by path; `setdefault` is atomic
_ALWAYS = ("vocab",)  # units whose files are always pulled: settings depend on them
_LOOSE = (CONFIG, CURRENT)  # files of the work directory itself
_DEPTH = 4  # WORK_DIR/versions/NNNN/rwr/bundle


class Mirror:
    """The work directory at a URL, and its local folder `home`."""

    def __init__(self, url: str):
        self.home = tables.local(url)
        self.url = tables.shown(self.home)
        self.store = Store(self.url)
        self.lease: Lease | None = None  # set if this command writes
        self._looked = -float("inf")

    @classmethod
    def of(cls, url: str) -> Mirror:
        """The work directory at a URL, or the one that contains it."""
        scheme, _, rest = url.rstrip("/").partition("://")
        parts = rest.split("/")
        for count in range(len(parts), max(0, len(parts) - _DEPTH - 1), -1):
            if not any(parts[:count]):  # file:///
                break
            mirror = cls(f"{scheme}://{'/'.join(parts[:count])}")
            if mirror.store.sizes(UNITS):
                return mirror
        return cls(url)

    # ------------------------------------------------------------------ pulling

    def refresh(self, *, writing: bool = False, after: float = 0.0) -> None:
        """Read the tables of the bucket, and pull all small files.

        Args:
          after: do nothing if the last refresh was less than so many seconds ago.
          writing: this process holds the lease, so unfinished local results are those of killed
            commands, and are removed.
        """
        if time.monotonic() - self._looked < after:
            return
        self._looked = time.monotonic()
        try:
            self._refresh(writing)
        except Gone:  # replaced meanwhile
            self._refresh(writing)

    def _refresh(self, writing: bool) -> None:
        units = self._tables()
        with self._locked():
            for unit, table in units.items():
                folder = self._folder(unit)
                local = tables.read(folder)
                if local is None or local.generation != table.generation:
                    if not self._promote(folder, table):
                        shutil.rmtree(folder, ignore_errors=True)
                        tables.write(folder, table)
            self._drop(units, writing)
            self._pull_loose()
            for unit in units:
                limit = math.inf if unit in _ALWAYS else SMALL
                self._pull_files(self._folder(unit), lambda name, size, limit=limit: size <= limit)
            if not units and self.store.read([SOURCES]):  # a copy of a bundle
                names = [n for n in self.store.sizes() if not os.path.exists(self._folder(n))]
                self.store.download({name: self._folder(name) for name in names})

    def pull(self, *patterns: str) -> None:
        """Download the missing files that match paths or globs (in `home`, or relative to it); a
        folder matches all files below it.
        """
        try:
            self._pull(patterns)
        except Gone:  # replaced meanwhile
            self.refresh()
            self._pull(patterns)

    def _pull(self, patterns: Iterable[str]) -> None:
        with self._locked():
            for pattern in patterns:
                unit = tables.holding(os.path.join(self.home, pattern))
                if unit is not None:
                    folder, table = unit
                    inside = os.path.relpath(os.path.join(self.home, pattern), folder)
                    names = set(tables.matching(table, inside))
                    self._pull_files(folder, lambda name, size, names=names: name in names)

    def _pull_files(self, folder: str, wanted) -> None:
        table = tables.read(folder)
        if table is None:
            return
        names = [name for name, (size, _) in table.files.items() if wanted(name, size)]
        paths = {name: os.path.join(folder, name) for name in names}
        missing = {name: path for name, path in paths.items() if not os.path.isfile(path)}
        Store(table.url).download(missing)

    def _promote(self, folder: str, table: Table) -> bool:
        """Put `folder`.new in the place of `folder` if it is of the finished generation; whether
        it is.
        """
        local = tables.read(folder + NEW)
        if local is None or local.generation != table.generation:
            return False
        for name in names_below(folder + NEW):
            if local.files.get(name) != table.files.get(name):
                os.remove(os.path.join(folder + NEW, name))
        tables.write(folder + NEW, table)
        replace_folder(folder + NEW, folder)
        return True

    def _pull_loose(self) -> None:
        content = self.store.read(_LOOSE)
        for name in _LOOSE:
            path = self._folder(name)
            if name not in content:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
                continue
            with atomic_write(path) as file:
                file.write(content[name])

    def _tables(self) -> dict[str, Table]:
        """The tables of all units, without UNIT.new if UNIT has the same generation."""
        names = [name for name in self.store.sizes(UNITS) if name.endswith(".json")]
        units = {}
        for name, content in self.store.read(names).items():
            unit = name.removeprefix(f"{UNITS}/").removesuffix(".json")
            table = Table.parse(content, f"{self.url}/{name}")
            at = f"{self.url}/{unit.removesuffix(NEW)}/{table.generation}"
            units[unit] = dataclasses.replace(table, url=at)
        finished = {unit + NEW: table.generation for unit, table in units.items()}
        return {u: table for u, table in units.items() if finished.get(u) != table.generation}

    def _drop(self, units: Mapping[str, Table], writing: bool) -> None:
        """Remove the local folders of units that the bucket does not have."""
        folders = [
            os.path.dirname(path)
            for places in ("*", "report/*", "versions/*", "versions/*/report/*")
            for path in glob.glob(os.path.join(glob.escape(self.home), places, tables.TABLE))
        ]
        for folder in folders:
            unit = os.path.relpath(folder, self.home)
            if unit not in units and (writing or not unit.endswith(NEW)):
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------ pushing

    def begin(self, place: str, *, fresh: bool, after: bool = False) -> None:
        """Start a generation for the unfinished result in `place`.new.

        Args:
          fresh: do not continue the generation of an interrupted run.
          after: copy the states of the finished result into it.
        """
        unit = os.path.relpath(place, self.home)
        if not fresh and tables.read(place + NEW) is not None:
            return
        generation, old = self._new(place, place + NEW), tables.read(place)
        if after and old is not None:
            source, target = f"{unit}/{old.generation}/", f"{unit}/{generation}/"
            names = [name.removeprefix(source) for name in self.store.sizes(source.rstrip("/"))]
            states = [name for name in names if is_state(name)]
            self.store.copy({source + name: target + name for name in states})
        self.push(place)
        self._sweep(unit)

    def push(self, place: str) -> None:
        """Send the present content of `place`.new, so that another machine can continue from it."""
        unit = os.path.relpath(place, self.home)
        table = self._upload(place + NEW)
        self.store.write(f"{UNITS}/{unit}{NEW}.json", table.text())
        tables.write(place + NEW, table)

    def receive(self, place: str) -> None:
        """Download the content of `place`.new that another process pushed."""
        unit = os.path.relpath(place, self.home)
        with self._locked():
            folder, table = place + NEW, self._tables().get(unit + NEW)
            if table is None:
                return
            local = tables.read(folder)
            if local is None or local.generation != table.generation:
                shutil.rmtree(folder, ignore_errors=True)
                local = table
            changed = {n for n, entry in table.files.items() if local.files.get(n) != entry}
            for name in changed:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(folder, name))
            tables.write(folder, table)
            self._pull_files(folder, lambda name, size: True)

    def publish(self, place: str, folder: str | None = None) -> None:
        """Make a finished folder (default: `place`.new) the result at `place`, in the bucket and
        locally.
        """
        unit = os.path.relpath(place, self.home)
        folder = place + NEW if folder is None else folder
        if tables.read(folder) is None:
            self._new(place, folder)
        table = self._upload(folder)
        with self._locked():
            tables.write(folder, table)
            self.store.write(f"{UNITS}/{unit}.json", table.text())
            if folder != place:
                replace_folder(folder, place)
        self.store.remove([f"{UNITS}/{unit}{NEW}.json"])
        self._sweep(unit)

    def push_loose(self) -> None:
        """Send the settings of the work directory, and the pointer to the version in use."""
        for name in _LOOSE:
            if os.path.isfile(self._folder(name)):
                with open(self._folder(name), "rb") as file:
                    self.store.write(name, file.read())

    def remove(self, place: str) -> None:
        """Remove a unit from the bucket; the caller has removed its local folder."""
        unit = os.path.relpath(place, self.home)
        self.store.remove([f"{UNITS}/{unit}.json"])
        self.store.remove([*self.store.sizes(f"{UNITS}/{unit}"), *self.store.sizes(unit)])

    def _new(self, place: str, folder: str) -> str:
        """Give the content of `folder` a new generation of the result at `place`."""
        generation = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
        tables.write(folder, Table(generation, {}, f"{tables.shown(place)}/{generation}"))
        return generation

    def _upload(self, folder: str) -> Table:
        """Send the files that differ from the folder's table, without states, which the training
        sends; returns the new table.
        """
        if self.lease:
            self.lease.check()
        table = tables.read(folder)
        assert table is not None, folder
        files, send = {}, {}
        for name in names_below(folder):
            path = os.path.join(folder, name)
            files[name] = entry = os.path.getsize(path), fingerprint_file(path)
            if table.files.get(name) != entry and not is_state(name):
                send[name] = path
        Store(table.url).upload(send)
        return dataclasses.replace(table, files=files)

    def _sweep(self, unit: str) -> None:
        """Remove the objects of generations that are neither the result nor a future one."""
        contents = self.store.read([f"{UNITS}/{unit}{end}.json" for end in ("", NEW)])
        current = {Table.parse(content, name).generation for name, content in contents.items()}
        names = self.store.sizes(unit)
        inside = {name: name.removeprefix(f"{unit}/").split("/")[0] for name in names}
        self.store.remove(name for name, generation in inside.items() if generation not in current)

    # ------------------------------------------------------------------ several processes, states

    def share(self, place: str) -> None:
        """Copy the primary's content of `place`.new to every process; all processes call it."""
        distributed.run_on_primary_and_broadcast(lambda: self.push(place))
        if not distributed.is_primary():
            self.receive(place)

    def states(self, place: str) -> States:
        """Where the training in `place`.new writes its checkpoints."""
        table = tables.read(place + NEW)
        assert table is not None, place

        def fetch() -> None:
            states = [name for name in Store(table.url).sizes() if is_state(name)]
            best = [name for name in states if name.startswith(f"{BEST}/")]
            for name in (BEST, CHECKPOINTS):
                shutil.rmtree(os.path.join(place + NEW, name), ignore_errors=True)
            Store(table.url).download(
                {name: os.path.join(place + NEW, name) for name in best or states}
            )

        return States(table.url, push=lambda: self.push(place), fetch=fetch)

    def _folder(self, unit: str) -> str:
        return os.path.join(self.home, unit)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the local folder against other processes of this host."""
        os.makedirs(self.home, exist_ok=True)
        with open(os.path.join(self.home, ".mirror.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def brought(path: str, *patterns: str) -> str:
    """The local path of a work directory, a version or a bundle. From a bucket its small files are
    downloaded, and those that match the patterns, which are relative to the work directory.
    """
    if is_remote(path):
        mirror = Mirror.of(path)
        mirror.refresh()
        mirror.pull(*patterns)
    return tables.local(path)


def fetch(path: str) -> str:
    """The path of a file, which is downloaded if it is a missing file of a mirror.

    Several threads and processes may call it at once; the threads download a file once.

    Raises:
      FileNotFoundError: neither this machine nor the bucket has it.
    """
    if os.path.isfile(path):
        return path
    unit = tables.holding(path)
    name = os.path.relpath(path, unit[0]) if unit else ""
    if unit is None or name not in unit[1].files:
        raise FileNotFoundError(path)
    with _FETCHING.setdefault(path, threading.Lock()):
        if not os.path.isfile(path):
            Store(unit[1].url).download({name: path})
    return path
