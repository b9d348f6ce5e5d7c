"""A work directory in a bucket: stages read and write its local folder, and what they finish is
pushed.

    WORK_DIR/_units/UNIT.json        which generation of a result is the finished one, and its files
    WORK_DIR/_units/UNIT.new.json    the same of a training under way
    WORK_DIR/UNIT/GENERATION/...     the objects of one generation
    WORK_DIR/config.gin, current.json

A unit is the folder of a stage, one report, or one version. Objects cannot be renamed as one, so
each result has objects of its own, and one small object, written last, puts it in use. A push that
is interrupted anywhere leaves the result before it; what it left lying is removed by the next one.
The bucket decides what is finished: local folders of other generations are dropped. Checkpoints
are written to the bucket by the training itself, below the generation that will be the result.

Files are pulled when a stage reads them, small ones at once. Who writes holds the lease of
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
_ALWAYS = ("vocab",)  # units whose files are pulled whatever their size: settings depend on them
_LOOSE = (CONFIG, CURRENT)  # files of the work directory itself
_DEPTH = 4  # WORK_DIR/versions/NNNN/rwr/bundle


class Mirror:
    """The work directory at a URL, and its local folder `home`."""

    def __init__(self, url: str):
        self.home = tables.local(url)
        self.url = tables.shown(self.home)
        self.store = Store(self.url)
        self.lease: Lease | None = None  # of the command, where it writes
        self._looked = -float("inf")

    @classmethod
    def of(cls, url: str) -> Mirror:
        """The work directory that a URL names, or that what it names lies in."""
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
        """Learn what the bucket holds, and pull all small files.

        Args:
          after: seconds since the last look before which this does nothing.
          writing: this process holds the lease: nobody else is making anything here, and what a
            killed command left half made is removed.
        """
        if time.monotonic() - self._looked < after:
            return
        self._looked = time.monotonic()
        try:
            self._refresh(writing)
        except Gone:  # replaced meanwhile
            self._refresh(writing)

    def _refresh(self, writing: bool) -> None:
        found = self._tables()
        with self._alone():
            for unit, table in found.items():
                folder = self._folder(unit)
                here = tables.read(folder)
                if here is None or here.generation != table.generation:
                    if not self._promote(folder, table):
                        shutil.rmtree(folder, ignore_errors=True)
                        tables.write(folder, table)
            self._drop(found, writing)
            self._pull_loose()
            for unit in found:
                most = math.inf if unit in _ALWAYS else SMALL
                self._pull_files(self._folder(unit), lambda name, size, most=most: size <= most)
            if not found and self.store.read([SOURCES]):  # a bundle that somebody copied
                names = [n for n in self.store.sizes() if not os.path.exists(self._folder(n))]
                self.store.download({name: self._folder(name) for name in names})

    def pull(self, *patterns: str) -> None:
        """The files that paths or globs mean (in `home`, or relative to it), where they are not
        here yet; a folder means all below it.
        """
        try:
            self._pull(patterns)
        except Gone:  # replaced meanwhile
            self.refresh()
            self._pull(patterns)

    def _pull(self, patterns: Iterable[str]) -> None:
        with self._alone():
            for pattern in patterns:
                found = tables.holding(os.path.join(self.home, pattern))
                if found is not None:
                    folder, table = found
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
        """Whether what lies in `folder`.new belongs to the finished result; it takes its place."""
        here = tables.read(folder + NEW)
        if here is None or here.generation != table.generation:
            return False
        for name in names_below(folder + NEW):
            if here.files.get(name) != table.files.get(name):
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
        """Of all units; of one that has just been finished, not of its making too."""
        names = [name for name in self.store.sizes(UNITS) if name.endswith(".json")]
        found = {}
        for name, content in self.store.read(names).items():
            unit = name.removeprefix(f"{UNITS}/").removesuffix(".json")
            table = Table.parse(content, f"{self.url}/{name}")
            at = f"{self.url}/{unit.removesuffix(NEW)}/{table.generation}"
            found[unit] = dataclasses.replace(table, url=at)
        made = {unit + NEW: table.generation for unit, table in found.items()}
        return {u: table for u, table in found.items() if made.get(u) != table.generation}

    def _drop(self, found: Mapping[str, Table], writing: bool) -> None:
        folders = [
            os.path.dirname(path)
            for places in ("*", "report/*", "versions/*", "versions/*/report/*")
            for path in glob.glob(os.path.join(glob.escape(self.home), places, tables.TABLE))
        ]
        for folder in folders:
            unit = os.path.relpath(folder, self.home)
            if unit not in found and (writing or not unit.endswith(NEW)):
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------ pushing

    def begin(self, place: str, *, fresh: bool, after: bool = False) -> None:
        """A generation for the result that is being made in `place`.new.

        Args:
          fresh: what an interrupted run left there does not count.
          after: its states begin as copies of those of the finished result.
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
        """What lies in `place`.new by now, so that another machine can go on with it."""
        unit = os.path.relpath(place, self.home)
        table = self._upload(place + NEW)
        self.store.write(f"{UNITS}/{unit}{NEW}.json", table.text())
        tables.write(place + NEW, table)

    def receive(self, place: str) -> None:
        """What another process pushed of `place`.new."""
        unit = os.path.relpath(place, self.home)
        with self._alone():
            folder, table = place + NEW, self._tables().get(unit + NEW)
            if table is None:
                return
            here = tables.read(folder)
            if here is None or here.generation != table.generation:
                shutil.rmtree(folder, ignore_errors=True)
                here = table
            changed = {n for n, entry in table.files.items() if here.files.get(n) != entry}
            for name in changed:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(folder, name))
            tables.write(folder, table)
            self._pull_files(folder, lambda name, size: True)

    def publish(self, place: str, folder: str | None = None) -> None:
        """The finished folder, `place`.new unless another is given, becomes the result at `place`,
        in the bucket and here.
        """
        unit = os.path.relpath(place, self.home)
        folder = place + NEW if folder is None else folder
        if tables.read(folder) is None:
            self._new(place, folder)
        table = self._upload(folder)
        with self._alone():
            tables.write(folder, table)
            self.store.write(f"{UNITS}/{unit}.json", table.text())
            if folder != place:
                replace_folder(folder, place)
        self.store.remove([f"{UNITS}/{unit}{NEW}.json"])
        self._sweep(unit)

    def push_loose(self) -> None:
        """The settings of the work directory, and which version is in use."""
        for name in _LOOSE:
            if os.path.isfile(self._folder(name)):
                with open(self._folder(name), "rb") as file:
                    self.store.write(name, file.read())

    def remove(self, place: str) -> None:
        """A unit whose local folder is gone."""
        unit = os.path.relpath(place, self.home)
        self.store.remove([f"{UNITS}/{unit}.json"])
        self.store.remove([*self.store.sizes(f"{UNITS}/{unit}"), *self.store.sizes(unit)])

    def _new(self, place: str, folder: str) -> str:
        """A generation of the result at `place` for what lies in `folder`."""
        generation = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
        tables.write(folder, Table(generation, {}, f"{tables.shown(place)}/{generation}"))
        return generation

    def _upload(self, folder: str) -> Table:
        """Sends what differs from the folder's table; returns the new one. States are there."""
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
        """Remove the objects of generations that are neither the result nor being made."""
        found = self.store.read([f"{UNITS}/{unit}{end}.json" for end in ("", NEW)])
        current = {Table.parse(content, name).generation for name, content in found.items()}
        names = self.store.sizes(unit)
        inside = {name: name.removeprefix(f"{unit}/").split("/")[0] for name in names}
        self.store.remove(name for name, generation in inside.items() if generation not in current)

    # ------------------------------------------------------------------ several processes, states

    def share(self, place: str) -> None:
        """What the primary has left in `place`.new is there in every process; all call it."""
        distributed.run_on_primary_and_broadcast(lambda: self.push(place))
        if not distributed.is_primary():
            self.receive(place)

    def states(self, place: str) -> States:
        """Where the training that is being made in `place`.new writes its checkpoints."""
        table = tables.read(place + NEW)
        assert table is not None, place

        def fetch() -> None:
            there = [name for name in Store(table.url).sizes() if is_state(name)]
            best = [name for name in there if name.startswith(f"{BEST}/")]
            for name in (BEST, CHECKPOINTS):
                shutil.rmtree(os.path.join(place + NEW, name), ignore_errors=True)
            Store(table.url).download(
                {name: os.path.join(place + NEW, name) for name in best or there}
            )

        return States(table.url, push=lambda: self.push(place), fetch=fetch)

    def _folder(self, unit: str) -> str:
        return os.path.join(self.home, unit)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Processes of this host change the local folder one at a time."""
        os.makedirs(self.home, exist_ok=True)
        with open(os.path.join(self.home, ".mirror.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def brought(path: str, *patterns: str) -> str:
    """The local path of a work directory, a version or a bundle; of one in a bucket, with its small
    files and those that the patterns mean, relative to the work directory it lies in.
    """
    if is_remote(path):
        mirror = Mirror.of(path)
        mirror.refresh()
        mirror.pull(*patterns)
    return tables.local(path)


def fetch(path: str) -> str:
    """A file of a mirror, downloaded when it is not here yet; any other path as it is.

    Several threads and processes may ask at once.

    Raises:
      FileNotFoundError: neither this machine nor the bucket has it.
    """
    if os.path.isfile(path):
        return path
    found = tables.holding(path)
    name = os.path.relpath(path, found[0]) if found else ""
    if found is None or name not in found[1].files:
        raise FileNotFoundError(path)
    Store(found[1].url).download({name: path})
    return path
