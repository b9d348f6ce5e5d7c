"""What a command would do to a work directory, and why it is refused. Touches nothing.

Every stage of a command is decided on before the first one runs. An untrained stage whose inputs or
settings differ is made anew, beside its old result. A trained stage is the same state while its
inputs and fixed settings are the same: then it is skipped, resumed or trained further. With others
it is refused, because days of training may lie in it, unless `--restart` names it or a stage before
it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence

from onesug_jax.errors import UserError
from onesug_jax.pipeline import lock
from onesug_jax.pipeline.spec import PROGRAM, Context, StageSpec
from onesug_jax.pipeline.workdir import MANIFEST, NEW, Manifest, WorkDir

SKIP, RUN, RESUME, CONTINUE = "skip", "run", "resume", "continue"
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Attributes:
      action: SKIP; RUN from nothing; RESUME what was interrupted; CONTINUE a finished training with
        other settings.
      reason: why, in words; "" for SKIP.
      replaces: whether a finished result is there that this one will take the place of.
    """

    spec: StageSpec
    action: str
    reason: str
    replaces: bool = False

    def line(self) -> str:
        """One line of a plan."""
        words = {
            SKIP: "up to date",
            RUN: "would run",
            RESUME: "would go on with an interrupted run",
            CONTINUE: "would train on from its last checkpoint",
        }[self.action]
        reason = f": {self.reason}" if self.reason else ""
        replaced = "; replaces the present result when finished" if self.replaces else ""
        return f"  {self.spec.name:<10} {words}{reason}{replaced}"


def plan(
    specs: Sequence[StageSpec],
    contexts: Mapping[str, Context],
    restart: str | None = None,
    replaceable: Sequence[str] = (),
) -> list[Step]:
    """What each stage would do, in order.

    Args:
      specs: the stages of the command.
      contexts: by stage name.
      restart: the stage that is made anew though it is finished.
      replaceable: stages whose trained states may be replaced by others.

    Raises:
      UserError: a trained state would be lost, or a folder holds files that no stage made.
    """
    steps: list[Step] = []
    redone: dict[str, Step] = {}  # folder -> what makes it anew in this command
    for spec in specs:
        if spec.folder is None:
            continue
        asked, free = spec.name == restart, spec.name in replaceable
        step = decide(spec, contexts[spec.name], redone, restart=asked, may_replace=free)
        steps.append(step)
        if step.action != SKIP:
            redone[spec.folder] = step
    return steps


def decide(
    spec: StageSpec,
    context: Context,
    redone: Mapping[str, Step] = {},
    *,
    restart: bool = False,
    may_replace: bool = False,
) -> Step:
    """What one stage would do; `redone` as in `plan`. Raises what `plan` raises."""
    folder = spec.place(context)
    _check_own(folder)
    old, part = Manifest.read(folder), Manifest.read(folder + NEW)
    there = old is not None
    if restart:
        return Step(spec, RUN, "--restart", there)
    if old is None and part is None:
        return Step(spec, RUN, "never run")
    now = spec.manifest(context)
    read = set(redone) if spec.uses_model else _folders(spec, context) & set(redone)
    upstream = [redone[name].spec.name for name in redone if name in read]
    if old is not None and not upstream and not old.differences(now):
        return Step(spec, SKIP, "")
    again = [f"inputs made anew by {_few(upstream)}"] if upstream else []
    if spec.resumes and part and not upstream and not part.differences(now):
        return Step(spec, RESUME, "", there)
    if not spec.trained:
        return Step(
            spec, RUN, _few([*(old.differences(now) if old else ["never finished"]), *again]), there
        )
    base = part or old
    assert base is not None
    other = base.differences(now, lambda name: not spec.may_change(name))
    if other or again:
        follows = all(
            change.kind == "inputs" and change.name.split(os.sep)[0] in spec.follows
            for change in other
        ) and read <= set(spec.follows)
        if not may_replace and not follows:
            _refuse(spec, context, [*other, *again], redone)
        return Step(spec, RUN, _few([*other, *again]), there)
    return Step(spec, RESUME if part else CONTINUE, _few(base.differences(now)), there)


def _folders(spec: StageSpec, context: Context) -> set[str | None]:
    return {context.work.folder_of(pattern) for pattern in spec.inputs(context)}


def _few(reasons: Sequence[object], most: int = 3) -> str:
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(map(str, reasons[:most])) + more


def _refuse(
    spec: StageSpec, context: Context, reasons: Sequence[object], redone: Mapping[str, Step]
) -> None:
    root = next(iter(redone.values()), None)
    first, why = (root.spec.name, f"{root.spec.name}: {root.reason}") if root else (spec.name, "")
    raise UserError(
        f"{spec.name} in {context.work.name} was trained on something else: "
        f"{why or _few(reasons)}. Nothing was changed. Two ways on: another folder "
        f"(--gin.WORK_DIR=PATH), or --restart={first}, which makes {first} and what depends on it "
        "anew beside the present results and replaces each when the new one is finished."
    )


def _check_own(folder: str) -> None:
    """A folder without a manifest is somebody's own."""
    if os.path.isdir(folder) and os.listdir(folder):
        if Manifest.read(folder) is None:
            raise UserError(
                f"{folder} holds files that no stage of this version made (it has no readable "
                f"{MANIFEST}), so it is left alone. Move them away or choose another "
                "--gin.WORK_DIR."
            )


def check_inputs(
    spec: StageSpec,
    context: Context,
    makers: Mapping[str, str],
    made_before: Sequence[str] = (),
) -> None:
    """Checks that what a stage reads is there, or is made before it by the same command.

    Args:
      makers: which stage makes which folder of WORK_DIR.
      made_before: folders that earlier stages of this command fill.

    Raises:
      UserError: the first missing input, and the command that makes it.
    """
    for pattern in spec.inputs(context):
        folder = context.work.folder_of(pattern)
        if folder in made_before or context.work.expand(pattern):
            continue
        path = context.work.join(pattern)
        if folder is None or folder not in makers:
            raise UserError(
                f"stage {spec.name} reads {path}, and there is no such file or folder; name one "
                "that is there."
            )
        way_out = f"`{PROGRAM} {makers[folder]} --gin.WORK_DIR={context.home.name}`"
        if makers[folder] == "simulate":
            way_out += ", or give a log of your own with --gin.LOG=PATH"
        raise UserError(
            f"stage {spec.name} needs {path}, which is missing or unfinished: first run {way_out}."
        )


def check_folder(work: WorkDir, steps: Sequence[Step], log: str | None, state_bytes: int) -> None:
    """Checks that nobody else writes there, that one may write, and that there is room.

    Args:
      log: the log that `ingest` will read; None if it will not run.
      state_bytes: what the checkpoints of the stages to train will take.

    Raises:
      UserError: naming the folder and the way out.
    """
    other = lock.holder(work.path)
    if other:
        raise lock.held(work.path, other)
    place = work.path
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"WORK_DIR {work.path}: {place} is not a folder that may be written to; choose another "
            "--gin.WORK_DIR or give yourself the right."
        )
    needed = state_bytes
    if log is not None:
        needed += 4 * sum(map(work.size, work.expand(log).values()))
    free = shutil.disk_usage(place).free
    if any(step.action != SKIP for step in steps) and free < needed:
        raise UserError(
            f"WORK_DIR {work.path}: about {needed / _MIB:,.0f} MiB are needed, and "
            f"{free / _MIB:,.0f} MiB are free on that disk; free some, or choose another "
            "--gin.WORK_DIR."
        )
