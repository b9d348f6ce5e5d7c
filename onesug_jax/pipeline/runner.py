"""Executes a plan: a stage writes beside its old result, and one rename replaces the old result.

If there are several processes, the primary decides and writes manifests. The others wait for it,
also while it runs a stage without `every_process`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time

from onesug_jax.files import link_tree, recover_folder, replace_folder
from onesug_jax.pipeline import remote_log
from onesug_jax.pipeline.plan import CONTINUE, RESUME, RUN, SKIP, Step, decide
from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.pipeline.tables import TABLE
from onesug_jax.pipeline.workdir import BUNDLE, CONFIG, MANIFEST, NEW, Manifest, WorkDir
from onesug_jax.train import distributed
from onesug_jax.train.states import BEST, CHECKPOINTS

_STATES = (CHECKPOINTS, BEST)  # their files are never written in place


def execute(
    spec: StageSpec, context: Context, *, restart: bool = False, may_replace: bool = False
) -> int:
    """Runs one stage if its results are missing or stale; prints the reason.

    Args:
      restart: run it even if it is finished.
      may_replace: whether its trained state may be replaced.

    Returns:
      The exit code; if it is not 0, the old result stays.

    Raises:
      UserError: a trained state would be lost (see `plan`).
    """
    if spec.folder is None:
        pull(spec, context)
        return spec(context)

    def ready() -> list[str]:
        recover_folder(spec.place(context))
        step = decide(spec, context, restart=restart, may_replace=may_replace)
        if step.action == SKIP and spec.always and context.named:
            step = dataclasses.replace(step, action=RUN, reason="asked for")
        if step.action != SKIP:
            _ready(step, context)
        return [step.action, step.reason]

    action, reason = distributed.run_on_primary_and_broadcast(ready)
    if action == SKIP:
        print(f"[{spec.name}] up to date, skipped", flush=True)
        if spec.recap and distributed.is_primary():
            spec.recap(context)
        return 0
    words = {RUN: "running", RESUME: "going on with an interrupted run", CONTINUE: "training on"}
    again = f": {reason}" if reason and reason != "never run" else ""
    print(f"[{spec.name}] {words[action]}{again}", flush=True)
    began = time.monotonic()
    new = spec.place(context) + NEW
    work = context.work if spec.uses_model else WorkDir(context.work.path, spec.folder)
    writing = dataclasses.replace(context, work=work, out=new)
    pull(spec, context)
    code = (
        spec(writing)
        if spec.every_process
        else distributed.run_on_primary_and_broadcast(lambda: spec(writing))
    )
    distributed.barrier()
    if code == 0:
        distributed.run_on_primary_and_broadcast(lambda: _take_place(spec, context))
        if spec.recap and distributed.is_primary():
            spec.recap(context)
    print(f"[{spec.name}] done in {time.monotonic() - began:.1f} s", flush=True)
    return code


def pull(spec: StageSpec, context: Context) -> None:
    """Downloads the inputs of a stage from a bucket; in each process that takes part."""
    mirror = context.mirror
    if not (spec.every_process or distributed.is_primary()):
        return
    if distributed.is_primary() and any(name == context.log for name in spec.inputs(context)):
        remote_log.copy(context.macros["LOG"])
    if mirror is None:
        return
    if not distributed.is_primary():
        mirror.refresh()
    if spec.folder and (spec.trained or spec.every_process):
        mirror.receive(spec.place(context))
    read = [context.work.join(pattern) for pattern in spec.inputs(context)]
    read += [context.home.join(pattern) for pattern in spec.also_reads(context)]
    mirror.pull(*read, *([context.work.path] if spec.uses_model else []))


def _ready(step: Step, context: Context) -> None:
    """Prepares `<folder>.new`: empty, as an interrupted run left it, or with the states to continue
    from.
    """
    folder, mirror = step.spec.place(context), context.mirror
    new = folder + NEW
    if step.action in (RUN, CONTINUE):
        shutil.rmtree(new, ignore_errors=True)
    if step.action == CONTINUE:
        if mirror:
            mirror.pull(folder)
        _take_over(folder, new, states=mirror is None)
    shutil.rmtree(os.path.join(new, BUNDLE), ignore_errors=True)
    os.makedirs(new, exist_ok=True)
    with open(os.path.join(new, CONFIG), "w", encoding="utf-8") as file:
        file.write(context.config_text)
    step.spec.manifest(context).write(new, finished=False)  # last: a folder without it is ignored
    if mirror and (step.spec.trained or step.spec.every_process):
        mirror.begin(folder, fresh=step.action != RESUME, after=step.action == CONTINUE)


def _take_over(folder: str, new: str, *, states: bool) -> None:
    """Copies a finished training, to continue from it. Its states, if `states`, are linked; other
    files are copied because the training may write to them.
    """
    os.makedirs(new)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        target = os.path.join(new, entry.name)
        if entry.name in _STATES:
            if states:
                link_tree(entry.path, target)
        elif entry.is_dir() and entry.name != BUNDLE:
            shutil.copytree(entry.path, target)
        elif entry.is_file() and entry.name not in (MANIFEST, CONFIG, TABLE):
            shutil.copy2(entry.path, target)


def _take_place(spec: StageSpec, context: Context) -> None:
    folder = spec.place(context)
    started = Manifest.read(folder + NEW)  # the inputs at the start of the stage
    assert started is not None, folder
    started.write(folder + NEW, finished=True)
    if context.mirror:
        context.mirror.publish(folder)
    else:
        replace_folder(folder + NEW, folder)
