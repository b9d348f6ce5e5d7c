"""Checkpoints by orbax: written in the background, verified when read, restored onto any mesh.

A stage's folder contains

    checkpoints/STEP/{params,optimizer,meta}   the newest full states (meta: JSON)
    best/STEP/{params,meta}                    parameters of the best step by the dev metric
    damaged/STEP                               damaged checkpoints, moved here

`meta` contains the format number and the identity: the stage, its model, vocabulary and examples. A
checkpoint with another identity is refused, and no file changes. All other settings may change
between runs.

A checkpoint appears by one rename, after its bytes and checksums are written. So a process that is
killed at any moment leaves only complete checkpoints. The checksums detect disk damage (in local
folders; buckets have their own). Serving imports this file, so it must not import TensorFlow.
"""

import contextlib
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from onesug_jax.errors import UserError, check_refused
from onesug_jax.train import distributed
from onesug_jax.train.digests import find_damage
from onesug_jax.train.history import find_changes, flatten
from onesug_jax.train.stored import (
    by_name,
    check_shapes,
    find_misfit,
    read_params,
    read_tree,
    stored_shapes,
)
from onesug_jax.train.writer import BackgroundWriter, absolute, first_line, list_steps

FORMAT = 2  # increase it when the meaning of a stored value changes
PARTS = ("params", "optimizer", "meta")


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      state: a `TrainState` on the mesh; `opt_state` is None if another optimizer's was stored.
      step: completed updates.
      notes: the JSON values passed to `save`.
    """

    state: Any
    step: int
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage folder. All processes of a run make the same calls.

    Args:
      folder: the stage's folder, local (or shared by all hosts) or a bucket's URL.
      keep: the number of full states to retain, at least 1.
      identity: JSON values that must equal those of a checkpoint; "stage" is the stage's name.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
    ):
        self.folder = absolute(folder)
        self.identity = json.loads(json.dumps(dict(identity or {}), default=str))
        self._writer = BackgroundWriter(self.folder, {"checkpoints": keep, "best": 1})

    def say(self, text: str) -> None:
        """Print one line, in process 0 only."""
        if distributed.is_primary():
            print(text, flush=True)

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Start to write the whole `TrainState`; returns when it is copied to the host.

        `restore` returns the `notes` (JSON values).

        Raises:
          UserError: the previous checkpoint could not be written (a full disk, for example).
        """
        self._writer.wait("best")  # the notes may refer to it
        trees = {"params": state.params, "optimizer": _optimizer_leaves(state)}
        self._writer.write("checkpoints", step, trees, self._meta(step, notes))

    def save_best(self, step: int, params: Any, notes: Mapping[str, Any]) -> None:
        """Start to write `params` as the best ones; they replace the previous best."""
        self._writer.write("best", step, {"params": params}, self._meta(step, notes))

    def restore(self, like: Any) -> Restored | None:
        """The newest intact state with the shardings of `like`; None if there is no checkpoint.

        Damaged checkpoints are moved to `damaged/` after an older one was read. If this raises, the
        folder is unchanged.

        Args:
          like: a `TrainState` of `ShapeDtypeStruct`s with shardings (`abstract_state`), on any
            mesh.

        Raises:
          UserError: the format, the identity or the shapes of the parameters differ, or no
            checkpoint is intact.
        """
        damaged: dict[int, str] = {}
        for step in reversed(list_steps(self.folder / "checkpoints")):
            home = self.folder / "checkpoints" / str(step)
            damage, meta = distributed.run_on_primary_and_broadcast(
                functools.partial(_inspect, home)
            )
            if not damage:
                self._check_meta(home, meta)
                try:
                    restored = _read(home, step, like, meta.get("notes") or {})
                except UserError:
                    raise
                except Exception as error:  # orbax and tensorstore raise many types
                    check_refused(home, error)
                    damage = f"cannot be read: {first_line(error)}"
            if not damage:
                self._set_aside(damaged, step)
                return restored
            damaged[step] = damage
        if damaged:
            listed = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise UserError(
                f"{self.folder}: no intact checkpoint ({listed}). Restore the files, choose "
                f"another folder, or start over with --restart={self._stage()}."
            )
        return None

    def best_notes(self) -> dict[str, Any]:
        """The notes of the best parameters in the folder; {} if there are none."""

        def read() -> dict[str, Any]:
            for step in reversed(list_steps(self.folder / "best")):
                with contextlib.suppress(OSError, ValueError):
                    return _read_meta(self.folder / "best" / str(step)).get("notes") or {}
            return {}

        return distributed.run_on_primary_and_broadcast(read)

    def remove_best(self) -> None:
        """Delete the best parameters, of a run that ended before its first checkpoint."""
        if distributed.is_primary() and (self.folder / "best").exists():
            (self.folder / "best").rmtree()
        distributed.barrier()

    def wait(self) -> None:
        """Wait until all started writes are on disk.

        Raises:
          UserError: a write failed.
        """
        self._writer.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._writer.close()
        except UserError:
            if error is None:  # otherwise the first error is more useful
                raise

    def _meta(self, step: int, notes: Any) -> dict[str, Any]:
        return {"format": FORMAT, "step": step, "identity": self.identity, "notes": notes}

    def _stage(self) -> str:
        return self.identity.get("stage", "STAGE")

    def _check_meta(self, home: epath.Path, meta: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another format or identity."""
        fixes = (
            f"Choose another folder (WORK_DIR), or start over with --restart={self._stage()}, "
            "which deletes the trained state there."
        )
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{home}: expected checkpoint format {FORMAT}, found {meta.get('format')}. {fixes}"
            )
        changes = find_changes(flatten(meta.get("identity") or {}), flatten(self.identity))
        if changes:
            listed = ", ".join(
                f"{name} {old!r} (now {new!r})" for name, (old, new) in changes.items()
            )
            raise UserError(
                f"{home}: trained with another model, vocabulary or data: {listed}. {fixes}"
            )

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Move damaged checkpoints to `damaged/`; the run resumes from `step`."""
        for bad, damage in damaged.items():
            home, target = (
                self.folder / "checkpoints" / str(bad),
                self.folder / "damaged" / str(bad),
            )
            self.say(f"checkpoint {home} is damaged ({damage}); moved to {target.parent}")
            if distributed.is_primary():
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                home.rename(target)
        if damaged:
            distributed.barrier()
            self.say(f"resuming from the previous checkpoint, step {step}")


def load_params(folder: str | os.PathLike, shardings: Any = None) -> Any:
    """The trained parameters in `folder`: the best ones if there are any, else the newest intact.

    Args:
      folder: a stage's folder, its `best` or `checkpoints`, or one step's folder in them.
      shardings: None returns numpy arrays; one sharding, or a tree of them, returns jax arrays with
        these shardings.

    Raises:
      UserError: there are none, they are damaged, or the tree of shardings has another structure.

    `work` is the WORK_DIR of a finished run:

    Examples:
      >>> from onesug_jax import load_params
      >>> params = load_params(f"{work}/rwr")
      >>> "embedding" in params
      True
    """
    root = absolute(folder)
    homes = [root] if (root / "params").is_dir() else []
    for series in (root / "best", root / "checkpoints", root):
        homes = homes or [series / str(step) for step in reversed(list_steps(series))]
    if not homes:
        raise UserError(
            f"{root}: no parameters found; expected the folder of a trained stage, with best/ or "
            "checkpoints/ in it."
        )
    damages = []
    for home in homes:
        damage = find_damage(home, ("params",))
        if not damage:
            return read_params(home / "params", shardings)
        damages.append(f"{home} ({damage})")
        print(f"checkpoint {damages[-1]} is damaged; trying the previous one", flush=True)
    raise UserError(f"{root}: no intact parameters: {'; '.join(damages)}.")


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the full states in a stage's folder, oldest first."""
    return list_steps(absolute(folder) / "checkpoints")


def _inspect(home: epath.Path) -> tuple[str, dict[str, Any]]:
    """(the damage or "", the meta) of a full state."""
    try:
        damage = find_damage(home, PARTS)
        return damage, {} if damage else _read_meta(home)
    except (OSError, ValueError) as error:
        check_refused(home, error)
        return f"cannot be read: {first_line(error)}", {}


def _read_meta(home: epath.Path) -> dict[str, Any]:
    return json.loads((home / "meta" / "metadata").read_text())


def _optimizer_leaves(state: Any) -> dict[str, Any]:
    """By name, because optax's containers depend on the settings. The step is included because
    orbax refuses empty trees.
    """
    return {"step": state.step, **by_name(state.opt_state)}


def _read(home: epath.Path, step: int, like: Any, notes: dict[str, Any]) -> Restored:
    check_shapes(home / "params", stored_shapes(home / "params"), like.params)
    params, opt_state = read_tree(home / "params", like.params), None
    leaves = _optimizer_leaves(like)
    if not find_misfit(stored_shapes(home / "optimizer"), leaves):
        saved = read_tree(home / "optimizer", leaves)
        structure = jax.tree.structure(like.opt_state)
        opt_state = jax.tree.unflatten(structure, [saved[name] for name in by_name(like.opt_state)])
    scalars = jax.jit(
        lambda: (jnp.int32(step), jnp.int32(-1)),
        out_shardings=(like.step.sharding, like.bad_step.sharding),
    )
    done, bad_step = scalars()
    state = like.replace(step=done, params=params, opt_state=opt_state, bad_step=bad_step)
    return Restored(state, step, notes)
