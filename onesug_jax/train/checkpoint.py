"""Checkpoints by orbax: written in the background, checked when read, restored onto any mesh.

A stage's folder holds

    checkpoints/STEP/{params,optimizer,meta}   the newest full states (meta: JSON)
    best/STEP/{params,meta}                    parameters only, of the best step by the dev metric
    damaged/STEP                               checkpoints found damaged, set aside

`meta` holds the format's number and the identity: what makes a trained state the same (the stage,
its model, vocabulary and examples). Under another identity nothing is restored, and nothing is
touched. Everything else may change between runs.

A checkpoint appears by one rename after all its bytes and their checksums are written, so a process
killed at any moment leaves complete ones only; what a disk loses later the checksums find (local
folders; a bucket has its own). Writing is `writer.py`'s. Does not know what a training loop is.
Serving imports this file: no TensorFlow here.
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

FORMAT = 2  # raise it when what is stored changes its meaning
PARTS = ("params", "optimizer", "meta")


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      state: a `TrainState` on the mesh; its `opt_state` is None where the stored one belongs to
        another optimizer.
      step: updates done.
      notes: JSON values given to `save`.
    """

    state: Any
    step: int
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage folder; every process of a run makes one and calls it alike.

    Args:
      folder: the stage's folder, local (or shared by all hosts) or a bucket's URL.
      keep: how many full states to retain.
      identity: what makes a trained state the same, JSON values; "stage" is its stage's name.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
    ):
        if keep < 1:
            raise UserError(f"keep={keep}: expected at least 1 checkpoint to keep.")
        self.folder = absolute(folder)
        self.identity = json.loads(json.dumps(dict(identity or {}), default=str))
        self._writer = BackgroundWriter(self.folder, {"checkpoints": keep, "best": 1})

    def say(self, text: str) -> None:
        """Print one line, in process 0 only."""
        if distributed.is_primary():
            print(text, flush=True)

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Start writing the whole `TrainState`; returns once it is copied off the devices.

        `notes` (JSON values) come back from `restore`.

        Raises:
          UserError: the checkpoint before this one could not be written (a full disk, for example).
        """
        self._writer.wait("best")  # the notes may name it
        trees = {"params": state.params, "optimizer": _optimizer_leaves(state)}
        self._writer.write("checkpoints", step, trees, self._meta(step, notes))

    def save_best(self, step: int, params: Any, notes: Mapping[str, Any]) -> None:
        """Start writing `params` as the best so far, in place of the best before."""
        self._writer.write("best", step, {"params": params}, self._meta(step, notes))

    def restore(self, like: Any) -> Restored | None:
        """The newest intact state, laid out as `like` says; None: there is no checkpoint.

        Checkpoints that are damaged are set aside once an older one has been read. Where this
        raises, the folder stays as it is.

        Args:
          like: a `TrainState` of `ShapeDtypeStruct`s with shardings (`step.abstract_state`), of any
            mesh.

        Raises:
          UserError: another format or identity wrote it, its parameters have other shapes, or none
            is intact.
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
                except Exception as error:  # orbax and tensorstore raise all kinds for broken files
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
        """The notes of the best parameters that lie in the folder; {} where there are none."""

        def look() -> dict[str, Any]:
            for step in reversed(list_steps(self.folder / "best")):
                with contextlib.suppress(OSError, ValueError):
                    return _read_meta(self.folder / "best" / str(step)).get("notes") or {}
            return {}

        return distributed.run_on_primary_and_broadcast(look)

    def remove_best(self) -> None:
        """Delete the best parameters: of a run that never came to its first checkpoint."""
        if distributed.is_primary() and (self.folder / "best").exists():
            (self.folder / "best").rmtree()
        distributed.barrier()

    def wait(self) -> None:
        """Until everything started is on disk.

        Raises:
          UserError: something could not be written.
        """
        self._writer.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._writer.close()
        except UserError:
            if error is None:  # otherwise the first error is the one to show
                raise

    def _meta(self, step: int, notes: Any) -> dict[str, Any]:
        return {"format": FORMAT, "step": step, "identity": self.identity, "notes": notes}

    def _stage(self) -> str:
        return self.identity.get("stage", "STAGE")

    def _check_meta(self, home: epath.Path, meta: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another format or identity."""
        ways = (
            f"Choose another folder (WORK_DIR), or start over with --restart={self._stage()}, "
            "which removes what was trained there."
        )
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{home}: expected checkpoint format {FORMAT}, found {meta.get('format')}. {ways}"
            )
        changes = find_changes(flatten(meta.get("identity") or {}), flatten(self.identity))
        if changes:
            listed = ", ".join(
                f"{name} {old!r} (now {new!r})" for name, (old, new) in changes.items()
            )
            raise UserError(
                f"{home}: trained with another model, vocabulary or data: {listed}. {ways}"
            )

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Move damaged checkpoints out of the way; that of `step` is the one gone on from."""
        for bad, damage in damaged.items():
            home, place = self.folder / "checkpoints" / str(bad), self.folder / "damaged" / str(bad)
            self.say(f"checkpoint {home} is damaged ({damage}); set aside in {place.parent}")
            if distributed.is_primary():
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    place.rmtree()
                home.rename(place)
        if damaged:
            distributed.barrier()
            self.say(f"going on from the checkpoint before it, step {step}")


def load_params(folder: str | os.PathLike, shardings: Any = None) -> Any:
    """The parameters a stage left in `folder`: the best if it has any, else the newest intact.

    Args:
      folder: a stage's folder, its `best` or `checkpoints`, or one step's folder in them.
      shardings: None gives numpy arrays; one sharding for all, or a tree of them, gives jax arrays
        laid out so.

    Raises:
      UserError: there are none, they are damaged, or the shardings' tree has another structure.

    `work` is the WORK_DIR of a finished run:

    Examples:
      >>> from onesug_jax import load_params
      >>> params = load_params(f"{work}/rwr")
      >>> "embedding" in params
      True
    """
    given = absolute(folder)
    homes = [given] if (given / "params").is_dir() else []
    for place in (given / "best", given / "checkpoints", given):
        homes = homes or [place / str(step) for step in reversed(list_steps(place))]
    if not homes:
        raise UserError(
            f"{given}: no parameters found; expected a trained stage's folder, with best/ or "
            "checkpoints/ in it."
        )
    damages = []
    for home in homes:
        damage = find_damage(home, ("params",))
        if not damage:
            return read_params(home / "params", shardings)
        damages.append(f"{home} ({damage})")
        print(f"checkpoint {damages[-1]} is damaged, trying the one before it", flush=True)
    raise UserError(f"{given}: no intact parameters: {'; '.join(damages)}.")


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the full states in a stage's folder, oldest first."""
    return list_steps(absolute(folder) / "checkpoints")


def _inspect(home: epath.Path) -> tuple[str, dict[str, Any]]:
    """(what is damaged or "", the meta) of a full state."""
    try:
        damage = find_damage(home, PARTS)
        return damage, {} if damage else _read_meta(home)
    except (OSError, ValueError) as error:
        check_refused(home, error)
        return f"cannot be read: {first_line(error)}", {}


def _read_meta(home: epath.Path) -> dict[str, Any]:
    return json.loads((home / "meta" / "metadata").read_text())


def _optimizer_leaves(state: Any) -> dict[str, Any]:
    """By name, since optax's containers change with settings. With the step, so that there is an
    array in it always: orbax refuses empty trees.
    """
    return {"step": state.step, **by_name(state.opt_state)}


def _read(home: epath.Path, step: int, like: Any, notes: dict[str, Any]) -> Restored:
    check_shapes(home / "params", stored_shapes(home / "params"), like.params)
    params, opt_state = read_tree(home / "params", like.params), None
    leaves = _optimizer_leaves(like)
    if not find_misfit(stored_shapes(home / "optimizer"), leaves):
        found = read_tree(home / "optimizer", leaves)
        structure = jax.tree.structure(like.opt_state)
        opt_state = jax.tree.unflatten(structure, [found[name] for name in by_name(like.opt_state)])
    scalars = jax.jit(
        lambda: (jnp.int32(step), jnp.int32(-1)),
        out_shardings=(like.step.sharding, like.bad_step.sharding),
    )
    done, bad_step = scalars()
    state = like.replace(step=done, params=params, opt_state=opt_state, bad_step=bad_step)
    return Restored(state, step, notes)
