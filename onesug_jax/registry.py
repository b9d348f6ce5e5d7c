"""What a stage of the command line is, and how one is run, skipped or redone.

A `StageSpec` is data: which folder of WORK_DIR it fills, what it reads, which configuration names
and source files its results depend on. `stages.py` lists them; `main.py` hands each a `Context`.
Not to be confused with `train.Stage`, one training objective for the training loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onesug_jax import workdir
from onesug_jax.code_version import code_version
from onesug_jax.errors import UserError
from onesug_jax.train import distributed

PROGRAM = "python -m onesug_jax.main"

_code_version = functools.cache(code_version)


@dataclasses.dataclass(frozen=True)
class Context:
    """All that a stage is given.

    `configured(name)` returns a library function or class with its configuration injected: only
    arguments that the configuration leaves open need to be passed; `configured("scope/name")` adds
    what is set for that scope. `settings` holds the stage's effective configuration,
    {"pretrain.steps": 400, ...}.
    """

    work: workdir.WorkDir
    macros: Mapping[str, Any]
    configured: Callable[[str], Callable[..., Any]]
    settings: Mapping[str, Any]
    options: argparse.Namespace = dataclasses.field(default_factory=argparse.Namespace)
    named: bool = True  # the user named this stage itself, rather than `run`
    resume: bool = False  # the folder holds an interrupted run made from the very same things
    targets: Sequence[str] = ()  # `module:attribute` of everything configured for the stage
    config_text: str = ""  # the operative configuration, as a gin file
    # (stage, WORK_DIR, bindings) -> exit code: another stage, elsewhere, with some bindings changed
    other: Callable[[str, str, Mapping[str, Any]], int] | None = None

    @property
    def log(self) -> str:
        """The log to read, an absolute path: LOG, or the simulated shop's where none is given."""
        return os.path.abspath(self.macros["LOG"] or self.work.simulated)

    @property
    def seed(self) -> int:
        """The one seed from which all randomness of the stage follows."""
        return self.macros["SEED"]


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One word of the command line.

    `run(context)` does the work and may return an exit code; further keyword arguments of it are
    configured under the stage's name (`pretrain.steps`). `folder` is the folder of WORK_DIR it
    fills; None for a stage that leaves nothing behind, which is never skipped. `inputs(context)`
    names what it reads: paths or globs inside WORK_DIR, or absolute paths. `configures` are the
    configuration names whose settings its results depend on, `ignores` names or `Name.parameter`
    that it uses but that do not change results (the mesh, how often to print).
    `describe(context)` returns the array shapes for --dry_run.
    """

    name: str
    summary: str
    run: Callable[[Context], int | None]
    folder: str | None = None
    inputs: Callable[[Context], Sequence[str]] = lambda context: ()
    configures: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("numpy",)
    flags: Callable[[argparse.ArgumentParser], None] | None = None
    describe: Callable[[Context], str] | None = None
    recap: Callable[[Context], None] | None = None  # shows earlier results when skipped
    in_run: bool = True  # part of `run`, in the order of the registry
    resumable: bool = False  # goes on from what an interrupted run left in its folder (training)
    always: bool = False  # never up to date when named itself (evaluate)
    together: bool = False  # every process of a run takes part, not process 0 alone
    published: bool = False  # named itself, it works in the version of WORK_DIR that is in use
    example: str = ""  # what follows PROGRAM in the help text

    def uses(self) -> tuple[str, ...]:
        """All configuration names the stage may ask for."""
        names = [*self.configures, *(name.split(".")[0] for name in self.ignores)]
        return tuple(dict.fromkeys(names))

    def __call__(self, context: Context) -> int:
        """Runs the stage, with its own keyword arguments (if it has any) configured."""
        configurable = len(inspect.signature(self.run).parameters) > 1
        run = context.configured(self.name) if configurable else self.run
        return run(context) or 0

    def code(self, context: Context) -> dict[str, str]:
        """Hashes of the source that its results depend on, read once a process."""
        return _code_version(self.run, tuple(context.targets))

    def manifest(self, context: Context) -> workdir.Manifest:
        """What results made now would be made from."""
        inputs = {}
        for pattern in self.inputs(context):
            for name, path in context.work.expand(pattern).items():
                inputs[name] = workdir.fingerprint(path)
        config = {
            name: value
            for name, value in context.settings.items()
            if name not in self.ignores and name.split(".")[0] not in self.ignores
        }
        return workdir.Manifest(
            stage=self.name,
            inputs=inputs,
            config=config,
            code=self.code(context),
            versions=workdir.versions(self.packages),
            seed=context.macros.get("SEED"),
        )


def check_inputs(spec: StageSpec, context: Context, makers: Mapping[str, str]) -> None:
    """Checks that what a stage reads is there, and finished where its results are to be kept.

    Args:
        spec: the stage about to run.
        context: its context.
        makers: which stage makes which folder of WORK_DIR.

    Raises:
        UserError: naming the first missing input and the command that makes it.
    """
    for pattern in spec.inputs(context):
        folder = context.work.folder_of(pattern)
        there = bool(context.work.expand(pattern))
        if there and folder and folder in makers and spec.folder and not spec.always:
            made = workdir.Manifest.read(context.work.join(folder))
            there = made is not None and made.finished is not None
        if there:
            continue
        path = context.work.join(pattern)
        if folder is None or folder not in makers:
            raise UserError(f"stage {spec.name} reads {path}, and there is no such file or folder.")
        mend = f"`{PROGRAM} {makers[folder]} --gin.WORK_DIR={context.work.path}`"
        if makers[folder] == "simulate":
            mend += ", or give a log of your own with --gin.LOG=PATH"
        raise UserError(
            f"stage {spec.name} needs {path}, which is missing or unfinished: first run {mend}."
        )


def execute(spec: StageSpec, context: Context, *, force: bool = False) -> int:
    """Runs one stage if its results are missing or stale; prints one line saying which.

    Of several processes, process 0 decides and keeps the manifest; the others wait for it, also
    while it runs a stage that is not run `together`.

    Returns:
        The exit code: 0 unless the stage returned another.
    """
    if spec.folder is None:
        return spec(context)
    decision = distributed.agreed(lambda: _ready(spec, context, force))
    if decision == _UP_TO_DATE:
        return 0
    began = time.monotonic()
    run = functools.partial(spec, dataclasses.replace(context, resume=decision == _RESUME))
    code = run() if spec.together else distributed.agreed(run)
    distributed.together()
    if code == 0 and distributed.first():
        folder = context.work.join(spec.folder)
        manifest = workdir.Manifest.read(folder)
        assert manifest is not None, folder
        manifest.write(folder, finished=True)
    print(f"[{spec.name}] done in {time.monotonic() - began:.1f} s", flush=True)
    return code


_UP_TO_DATE, _RESUME, _ANEW = "up to date", "resume", "anew"


def _ready(spec: StageSpec, context: Context, force: bool) -> str:
    """Readies the stage's folder where it has to run; says how."""
    assert spec.folder is not None
    folder = context.work.join(spec.folder)
    manifest = spec.manifest(context)
    reason = workdir.stale_reason(folder, manifest)
    if reason is None and not force and not (spec.always and context.named):
        hint = " (--force runs it again)" if context.named else ""
        print(f"[{spec.name}] up to date, skipped{hint}", flush=True)
        if spec.recap:
            spec.recap(context)
        return _UP_TO_DATE
    resume = workdir.make_ready(folder, manifest, resumable=spec.resumable and not force)
    print(f"[{spec.name}] {_why(reason, resume, force)}", flush=True)
    manifest.write(folder, finished=False)
    with open(os.path.join(folder, workdir.CONFIG), "w", encoding="utf-8") as file:
        file.write(context.config_text)
    return _RESUME if resume else _ANEW


def _why(reason: str | None, resume: bool, force: bool) -> str:
    if resume:
        return "going on with an interrupted run"
    if reason in (None, "never run"):
        return "running again" if force or reason is None else "running"
    return f"redoing: {reason}"


def plan(specs: Sequence[StageSpec], context_for: Callable[[StageSpec], Context]) -> list[str]:
    """One line a stage: what `run` would do with it and why (for --dry_run)."""
    lines: list[str] = []
    redone: dict[str, str] = {}
    for spec in specs:
        context = context_for(spec)
        assert spec.folder is not None
        reason = workdir.stale_reason(context.work.join(spec.folder), spec.manifest(context))
        folders = {context.work.folder_of(pattern) for pattern in spec.inputs(context)}
        before = [redone[folder] for folder in redone if folder in folders]
        if reason is None and before:
            reason = f"{' and '.join(before)} will have made its inputs anew"
        if reason:
            redone[spec.folder] = spec.name
        lines.append(f"  {spec.name:<10} {'would run: ' + reason if reason else 'up to date'}")
    return lines
