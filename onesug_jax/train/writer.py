"""Writes series of checkpoints in the background by orbax, and translates its errors."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from onesug_jax.errors import UserError
from onesug_jax.files import is_remote
from onesug_jax.train.digests import write_digests


class BackgroundWriter:
    """Writes `folder/SERIES/STEP/PART`. All processes of a run make the same calls.

    Args:
      folder: local (or shared by all hosts) or a bucket's URL.
      keep: series -> the number of steps to retain.
    """

    def __init__(self, folder: epath.Path, keep: Mapping[str, int]):
        self._folder, self._keep = folder, keep
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._step: dict[str, int] = {}
        self._log_level: int | None = None

    def write(
        self, series: str, step: int, trees: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        """Start to write trees of arrays, by part, and `meta` as JSON; returns when they are copied
        to the host.

        Raises:
          UserError: the previous step could not be written.
        """
        manager = self._manager(series)
        with self._explaining(series):
            manager.wait_until_finished()
            for saved in manager.all_steps():
                if saved > step:  # of a killed run; this run will write it again
                    manager.delete(saved)
            if step in manager.all_steps():
                return
            self._step[series] = step
            parts = {part: ocp.args.PyTreeSave(tree) for part, tree in trees.items()}
            parts["meta"] = ocp.args.JsonSave(meta)
            manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def wait(self, series: str | None = None) -> None:
        """Wait until all started writes are on disk, of one series or of all.

        Raises:
          UserError: a write failed.
        """
        for name, manager in self._managers.items():
            if series in (None, name):
                with self._explaining(name):
                    manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then stop the background threads."""
        try:
            self.wait()
        finally:
            self._mute(False)
            managers, self._managers = self._managers, {}
            for name, manager in managers.items():
                with self._explaining(name):
                    manager.close()

    def _manager(self, series: str) -> ocp.CheckpointManager:
        if series not in self._managers:
            self._mute(True)
            home = self._folder / series
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep[series],
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=lambda: write_digests(home, self._step[series])
                ),
            )
            self._managers[series] = ocp.CheckpointManager(home, options=options)
        return self._managers[series]

    def _mute(self, on: bool) -> None:
        """Silence orbax, which logs a traceback of every error; `_explaining` reports errors."""
        log = logging.getLogger("absl")
        if on and self._log_level is None:
            self._log_level = log.level
            log.setLevel(logging.CRITICAL)
        elif not on and self._log_level is not None:
            log.setLevel(self._log_level)
            self._log_level = None

    @contextlib.contextmanager
    def _explaining(self, series: str) -> Iterator[None]:
        """An error inside becomes a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            home = self._folder / series
            raise UserError(
                f"{home}: checkpoint of step {self._step.get(series)} could not be written: "
                f"{first_line(error)} ({_free(home)}). Complete checkpoints: "
                f"{list_steps(home) or 'none'}. Make room or repair the folder, then give the "
                "same command again."
            ) from error


def list_steps(home: epath.Path) -> list[int]:
    """The complete steps in a series' folder, oldest first."""
    if not home.is_dir():
        return []
    steps = [p for p in home.iterdir() if p.name.isdecimal() and p.is_dir()]
    if is_remote(home):  # a bucket has no renames: a file marks a complete step
        steps = [p for p in steps if ocp.utils.is_checkpoint_finalized(p)]
    return sorted(int(p.name) for p in steps)


def absolute(folder: str | os.PathLike) -> epath.Path:
    """The folder's absolute path, which orbax requires; a bucket's URL is unchanged."""
    folder = os.fspath(folder).removeprefix("file://")
    return epath.Path(folder if "://" in folder else os.path.abspath(folder))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:300]


def _free(home: epath.Path) -> str:
    if is_remote(home):
        return "in a bucket"
    while not home.exists():
        home = home.parent
    return f"{shutil.disk_usage(home).free / 2**20:.0f} MiB free on that disk"
