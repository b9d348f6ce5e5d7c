"""Checkpoints by orbax: written in the background, checked when read, restored onto any mesh.

A stage's folder holds

    checkpoints/STEP/{params,rest,meta}   the newest full states (rest: optimizer; meta: JSON)
    best/STEP/{params,meta}               parameters only, of the best step by the dev metric
    damaged/STEP                          checkpoints found damaged, set aside

A checkpoint appears by one rename after all its bytes and their checksums are written, so a process
killed at any moment leaves whole ones only; what a disk loses later the checksums find (local
folders; a bucket keeps its own). Does not know what a training loop is. Serving imports this file:
no TensorFlow here.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from onesug_jax.errors import UserError
from onesug_jax.train.digests import find_damage, is_remote, write_digests
from onesug_jax.train.mesh import path_name

FORMAT = 1
PARTS = ("params", "rest", "meta")


class Checkpoints:
    """The checkpoints of one stage folder; every process of a run makes one and calls it alike.

    Args:
      folder: the stage's folder, local (or shared by all hosts) or a bucket's URL.
      keep: how many full states to keep.
      fingerprint: settings the run depends on, as JSON values; kept with every checkpoint.
      say: where one-line messages go.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        fingerprint: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ):
        if keep < 1:
            raise UserError(f"keep={keep}: expected at least 1 checkpoint to keep.")
        self.folder = _absolute(folder)
        self.fingerprint = json.loads(
            json.dumps(dict(fingerprint or {}), default=str, sort_keys=True)
        )
        self.say = say
        self._keep = keep
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._writing: dict[str, int] = {}
        self._log_level: int | None = None

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Start writing the whole `TrainState`; returns once it is copied off the devices.

        `notes` (JSON values) come back from `restore`.

        Raises:
          UserError: the checkpoint before this one could not be written (a full disk, for example).
        """
        rest = {"opt_state": state.opt_state, "step": state.step, "bad_step": state.bad_step}
        self._write("checkpoints", step, params=state.params, rest=rest, notes=notes)

    def save_best(self, step: int, params: Any, notes: Mapping[str, Any]) -> None:
        """Start writing `params` as the best so far, in place of the best before."""
        self._write("best", step, params=params, notes=notes)

    def restore(
        self, like: Any, *, on_mismatch: str = "raise"
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact state, laid out as `like` says, and its notes; None: there is none.

        Args:
          like: a `TrainState` of `ShapeDtypeStruct`s with shardings (`step.abstract_state`), of any
            mesh.
          on_mismatch: when another configuration wrote the checkpoint: "raise", or "restart":
            delete what it left in this folder and return None.

        Raises:
          UserError: another configuration wrote it, its arrays have other shapes, or none is
            intact.
        """
        damaged: list[str] = []
        for step in sorted(_steps(self.folder / "checkpoints"), reverse=True):
            home = self.folder / "checkpoints" / str(step)
            damage = _agreed(find_damage(home, PARTS) if jax.process_index() == 0 else "")
            if not damage:
                meta = json.loads((home / "meta" / "metadata").read_text())
                changes = _changes(meta.get("fingerprint", {}), self.fingerprint)
                if changes and on_mismatch == "restart":
                    self.say(f"starting over: {self.folder} was made with {changes}")
                    self.clear()
                    return None
                if changes:
                    raise UserError(
                        f"{home}: made with another configuration: {changes}. Give the old "
                        "settings to go on, choose another folder, or ask to restart."
                    )
                rest = {"opt_state": like.opt_state, "step": like.step, "bad_step": like.bad_step}
                try:
                    for part, wanted in (("params", like.params), ("rest", rest)):
                        check_shapes(home / part, _saved(home / part), wanted)
                    params = _read(home / "params", like.params)
                    rest = _read(home / "rest", rest)
                except UserError:
                    raise
                except Exception as error:  # orbax and tensorstore raise all kinds for broken files
                    damage = f"cannot be read: {_first_line(error)}"
            if not damage:
                if damaged:
                    self.say(f"going on from the checkpoint before it, step {step}")
                return like.replace(params=params, **rest), meta.get("notes") or {}
            damaged.append(f"step {step}: {damage}")
            self.say(
                f"checkpoint {home} is damaged ({damage}); set aside in {self.folder / 'damaged'}"
            )
            self._set_aside(home, step)
        if damaged:
            raise UserError(
                f"{self.folder}: no intact checkpoint ({'; '.join(damaged)}). Delete the folder to "
                "start over."
            )
        return None

    def clear(self) -> None:
        """Delete every checkpoint of this folder."""
        self.close()
        if jax.process_index() == 0:
            for name in ("checkpoints", "best", "damaged"):
                if (self.folder / name).exists():
                    (self.folder / name).rmtree()
        _barrier("clear")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # otherwise what went wrong first is told
                raise

    def wait(self) -> None:
        """Until everything started is on disk.

        Raises:
          UserError: something could not be written.
        """
        for name, manager in self._managers.items():
            with self._telling(name):
                manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let the background threads go."""
        try:
            self.wait()
        finally:
            self._mute(False)
            managers, self._managers = self._managers, {}
            for name, manager in managers.items():
                with self._telling(name):
                    manager.close()

    def _write(self, name: str, step: int, *, params, notes, **more) -> None:
        manager = self._manager(name)
        with self._telling(name):
            manager.wait_until_finished()
            for saved in manager.all_steps():
                if saved > step:  # of a killed run that was further; it comes again
                    manager.delete(saved)
            if step in manager.all_steps():
                return
            self._writing[name] = step
            meta = {"format": FORMAT, "step": step, "fingerprint": self.fingerprint, "notes": notes}
            parts = {"params": ocp.args.PyTreeSave(params), "meta": ocp.args.JsonSave(meta)}
            parts |= {part: ocp.args.PyTreeSave(tree) for part, tree in more.items()}
            manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def _manager(self, name: str) -> ocp.CheckpointManager:
        if name not in self._managers:
            self._mute(True)
            home = self.folder / name
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep if name == "checkpoints" else 1,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=lambda: write_digests(home, self._writing[name])
                ),
            )
            self._managers[name] = ocp.CheckpointManager(home, options=options)
        return self._managers[name]

    def _mute(self, on: bool) -> None:
        """Orbax logs the trace of every error it raises; `_Telling` tells it once, in a line."""
        log = logging.getLogger("absl")
        if on and self._log_level is None:
            self._log_level = log.level
            log.setLevel(logging.CRITICAL)
        elif not on and self._log_level is not None:
            log.setLevel(self._log_level)
            self._log_level = None

    def _telling(self, name: str) -> "_Telling":
        return _Telling(self.folder / name, self._writing.get(name))

    def _set_aside(self, home: epath.Path, step: int) -> None:
        if jax.process_index() == 0:
            place = self.folder / "damaged" / str(step)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.rmtree()
            home.rename(place)
        _barrier(f"damaged {step}")


class _Telling:
    """Turns whatever writing raises into one message for the user."""

    def __init__(self, home: epath.Path, step: int | None):
        self.home, self.step = home, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            kept = sorted(_steps(self.home))
            raise UserError(
                f"{self.home}: checkpoint of step {self.step} could not be written: "
                f"{_first_line(error)} ({_free(self.home)}). Checkpoints kept: {kept or 'none'}. "
                "Make room or mend the folder, then give the same command again."
            ) from error


def load_params(folder: str | os.PathLike, shardings: Any = None) -> Any:
    """The parameters a stage left in `folder`: the best if it kept any, else the newest intact.

    Args:
      folder: a stage's folder, its `best` or `checkpoints`, or one step's folder in them.
      shardings: None gives numpy arrays; one sharding for all, or a tree of them, gives jax arrays
        laid out so.

    Raises:
      UserError: there are none, they are damaged, or the shardings' tree has another structure.
    """
    told = _absolute(folder)
    homes = [told] if (told / "params").is_dir() else []
    for place in (told / "best", told / "checkpoints", told):
        homes = homes or [place / str(step) for step in sorted(_steps(place), reverse=True)]
    if not homes:
        raise UserError(
            f"{told}: no parameters found; expected a trained stage's folder, with best/ or "
            "checkpoints/ in it."
        )
    damages = []
    for home in homes:
        damage = find_damage(home, ("params",))
        if not damage:
            return _read_params(home / "params", shardings)
        damages.append(f"{home} ({damage})")
        print(f"checkpoint {damages[-1]} is damaged, trying the one before it", flush=True)
    raise UserError(f"{told}: no intact parameters: {'; '.join(damages)}.")


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the full states in a stage's folder, oldest first."""
    return sorted(_steps(_absolute(folder) / "checkpoints"))


def _read_params(home: epath.Path, shardings: Any) -> Any:
    saved = _saved(home)
    if shardings is None:
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    else:
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _: shardings, saved)
        difference = _difference(_names(saved), _names(shardings))
        if difference:
            raise UserError(f"{home}: does not fit the model: {difference}.")
        args = jax.tree.map(
            lambda _, sharding: ocp.ArrayRestoreArgs(sharding=sharding), saved, shardings
        )
    return ocp.PyTreeCheckpointHandler().restore(
        home, args=ocp.args.PyTreeRestore(restore_args=args)
    )


def _read(home: epath.Path, like: Any) -> Any:
    args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        like,
    )
    return ocp.PyTreeCheckpointHandler().restore(
        home, args=ocp.args.PyTreeRestore(item=like, restore_args=args)
    )


def _saved(home: epath.Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(home).tree


def _names(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def check_shapes(home: Any, saved: Any, wanted: Any) -> None:
    """Raise a UserError naming the first arrays that differ between what is stored and what a run
    needs.
    """
    saved, wanted = _names(saved), _names(wanted)
    difference = _difference(saved, wanted)
    for name in [] if difference else wanted:
        if tuple(saved[name].shape) != tuple(wanted[name].shape):
            difference = (
                f"{name} is {list(saved[name].shape)} there and {list(wanted[name].shape)} here"
            )
            break
    if difference:
        raise UserError(
            f"{home}: does not fit this model or optimizer: {difference}. Give the old settings, "
            "or another folder."
        )


def _difference(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    missing, surplus = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
    said = [f"it has no {', '.join(missing[:3])} ({len(missing)} missing)"] if missing else []
    said += (
        [f"it has {', '.join(surplus[:3])} besides ({len(surplus)} too many)"] if surplus else []
    )
    return "; ".join(said)


def _changes(old: Any, new: Any, name: str = "") -> str:
    """What differs between two fingerprints, setting by setting."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = (
            _changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            for key in sorted(old.keys() | new.keys())
        )
        return ", ".join(part for part in parts if part)
    return "" if old == new else f"{name} {old!r} (now {new!r})"


def _steps(home: epath.Path) -> list[int]:
    if not home.is_dir():
        return []
    return [int(path.name) for path in home.iterdir() if path.name.isdecimal() and path.is_dir()]


def _agreed(damage: str) -> str:
    """Process 0's finding, on every process, so that all fall back to the same step."""
    if jax.process_count() == 1:
        return damage
    text = np.zeros(512, np.uint8)
    said = np.frombuffer(damage.encode()[:512], np.uint8)
    text[: said.size] = said
    text = np.asarray(multihost_utils.broadcast_one_to_all(text))
    return bytes(text).rstrip(b"\0").decode(errors="replace")


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"onesug checkpoint {name}")


def _absolute(folder: str | os.PathLike) -> epath.Path:
    folder = os.fspath(folder)
    return epath.Path(folder if "://" in folder else os.path.abspath(folder))


def _free(home: epath.Path) -> str:
    if is_remote(home):
        return "in a bucket"
    while not home.exists():
        home = home.parent
    return f"{shutil.disk_usage(home).free / 2**20:.0f} MiB free on that disk"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:300]
