"""What a command would do to a work directory, or why it is refused. Changes nothing.

All stages of a command are planned before the first one runs. An untrained stage with changed
inputs or settings runs again, beside its old result. A trained stage with the same inputs and the
same fixed settings is skipped, resumed or trained further. With other ones it is refused, because
days of training may be lost, unless `--restart` names it or an earlier stage.
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
      action: SKIP; RUN from the start; RESUME an interrupted run; CONTINUE a finished training with
        other settings.
      reason: text; "" for SKIP.
      replaces: whether the new result will replace a finished one.
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
      restart: the stage to run again even if it is finished.
      replaceable: stages whose trained states may be replaced.

    Raises:
      UserError: a trained state would be lost, or a folder holds files that no stage made.
    """
    steps: list[Step] = []
    redone: dict[str, Step] = {}  # folder -> the step of this command that replaces it
    for spec in specs:
        if spec.folder is None:
            continue
        step = decide(
            spec,
            contexts[spec.name],
            redone,
            restart=spec.name == restart,
            may_replace=spec.name in replaceable,
        )
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
    replaces = old is not None
    if restart:
        return Step(spec, RUN, "--restart", replaces)
    if old is None and part is None:
        return Step(spec, RUN, "never run")
    now = spec.manifest(context)
    read = set(redone)
    if not spec.uses_model:
        read &= {context.work.folder_of(pattern) for pattern in spec.inputs(context)}
    upstream = [step.spec.name for name, step in redone.items() if name in read]
    if old is not None and not upstream and not old.differences(now):
        return Step(spec, SKIP, "")
    again = [f"inputs made anew by {_few(upstream)}"] if upstream else []
    if spec.resumes and part and not upstream and not part.differences(now):
        return Step(spec, RESUME, "", replaces)
    if not spec.trained:
        changes = old.differences(now) if old else ["never finished"]
        return Step(spec, RUN, _few([*changes, *again]), replaces)
    base = part or old
    assert base is not None
    fixed = base.differences(now, lambda name: not spec.may_change(name))
    if fixed or again:
        follows = all(
            change.kind == "inputs" and change.name.split(os.sep)[0] in spec.follows
            for change in fixed
        ) and read <= set(spec.follows)
        if not may_replace and not follows:
            _refuse(spec, context, [*fixed, *again], redone)
        return Step(spec, RUN, _few([*fixed, *again]), replaces)
    return Step(spec, RESUME if part else CONTINUE, _few(base.differences(now)), replaces)


def _few(reasons: Sequence[object], most: int = 3) -> str:
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(map(str, reasons[:most])) + more


def _refuse(
    spec: StageSpec, context: Context, reasons: Sequence[object], redone: Mapping[str, Step]
) -> None:
    root = next(iter(redone.values()), None)
    first, why = spec.name, ""
    if root:
        first = root.spec.name
        why = f"{first}: {root.reason or 'its interrupted run goes on'}"
    raise UserError(
        f"{spec.name} in {context.work.name} was trained on something else: "
        f"{why or _few(reasons)}. Nothing was changed. Two ways on: another folder "
        f"(--gin.WORK_DIR=PATH), or --restart={first}, which makes {first} and what depends on it "
        "anew beside the present results and replaces each when the new one is finished."
    )


def _check_own(folder: str) -> None:
    """Raises UserError for a folder with files but without a manifest: it is the user's own."""
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
    """Checks that the inputs of a stage exist, or are made by earlier stages of the same command.

    Args:
      makers: folder of WORK_DIR -> the stage that makes it.
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
    """Checks that no other command writes there, the permissions, and the free space.

    Args:
      log: the log that `ingest` will read; None if it will not run.
      state_bytes: the size of the checkpoints of the stages to train.

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
