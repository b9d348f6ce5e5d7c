"""A stage of the command line as data, and its context.

A `StageSpec` declares the folder of WORK_DIR that a stage fills, its inputs, and the settings that
its results depend on. `stages/making.py` and `using.py` list them; `plan.py` and `runner.py` run
them. `train_state.Stage` is something else: one training objective for the training loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onesug_jax.pipeline.mirror import Mirror
from onesug_jax.pipeline.tables import local_log
from onesug_jax.pipeline.workdir import NEW, Manifest, WorkDir, home_of, provenance
from onesug_jax.train.states import HERE, States

PROGRAM = "python -m onesug_jax.main"


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of a stage.

    `configured(name)` returns a library function or class with its configuration injected, so the
    caller passes only the other arguments; `configured("scope/name")` adds settings of that scope.

    Attributes:
      work: where the stage reads and writes. For a stage that uses the trained model, the bundle of
        the model in use (`workdir.model_in_use`).
      home: the work directory itself, or its version in use, with the log and the reports.
      settings: the effective configuration, {"pretrain.steps": 400, ...}.
      given: names that this command set, by flag or file.
      named: the command names this stage, rather than `run`.
      out: the folder that this stage writes; at the end it replaces the last result.
      config_text: the operative configuration, as a gin file.
      other: (stage, WORK_DIR, bindings) -> exit code; runs a stage in another WORK_DIR with some
        bindings changed.
      mirror: downloads files and sends results if WORK_DIR is in a bucket.
    """

    work: WorkDir
    home: WorkDir
    macros: Mapping[str, Any]
    configured: Callable[[str], Callable[..., Any]]
    settings: Mapping[str, Any]
    options: argparse.Namespace = dataclasses.field(default_factory=argparse.Namespace)
    given: frozenset[str] = frozenset()
    named: bool = True
    out: str = ""
    config_text: str = ""
    other: Callable[[str, str, Mapping[str, Any]], int] | None = None
    mirror: Mirror | None = None

    @property
    def log(self) -> str:
        """The absolute path of the log to read: LOG, or by default the simulated shop's."""
        return local_log(self.macros["LOG"] or self.work.simulated)

    @property
    def compiled(self) -> str:
        """The folder of compiled programs, with which the second `suggest` starts in seconds."""
        return os.path.join(home_of(self.macros["WORK_DIR"]), ".compiled")

    @property
    def states(self) -> States:
        """Where a training stores its states."""
        return self.mirror.states(self.out.removesuffix(NEW)) if self.mirror else HERE

    def share(self) -> None:
        """Copies the primary's content of `out` to every process; all processes call it."""
        if self.mirror:
            self.mirror.share(self.out.removesuffix(NEW))

    @property
    def seed(self) -> int:
        """The seed of all randomness in the stage."""
        return self.macros["SEED"]


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage of the command line.

    Attributes:
      run: does the work and may return an exit code; its further keyword arguments are configured
        under the stage's name (`pretrain.steps`).
      folder: the folder of WORK_DIR it fills; None for a stage without results.
      subfolder: the name of a result inside `folder`, if it has several (reports).
      format: increased by hand when the files of the stage change their meaning.
      inputs: paths or globs inside WORK_DIR, or absolute paths.
      also_reads: further files of WORK_DIR, in the form of `inputs`; they follow from the inputs,
        or results do not depend on them.
      configures: configuration names whose settings its results depend on.
      changeable: of a trained stage, names (or `Name.parameter`) that may change while its training
        continues from a checkpoint; another value of any other setting or input is another state.
      fixed: exceptions from `changeable`.
      ignores: names (or `Name.parameter`) that it uses but that do not change results.
      follows: folders among the inputs; when only they change, a trained stage starts anew beside
        its old result and is not refused (rwr starts from the result of pretrain).
      check: raises UserError if settings, machine or inputs do not fit; changes nothing.
      describe: a description of future results for --dry_run: array shapes, runs.
      recap: shows earlier results when the stage is skipped.
      in_run: part of `run`, in the order of the registry.
      resumes: continues a killed run with the same inputs and settings.
      always: runs whenever the command names it (evaluate).
      every_process: every process of a run takes part, not only the primary.
      uses_model: reads the bundle of the model in use.
      example: the command without PROGRAM, for the help text.
    """

    name: str
    summary: str
    run: Callable[[Context], int | None]
    folder: str | None = None
    subfolder: Callable[[Context], str] | None = None
    format: int = 1
    inputs: Callable[[Context], Sequence[str]] = lambda context: ()
    also_reads: Callable[[Context], Sequence[str]] = lambda context: ()
    configures: tuple[str, ...] = ()
    changeable: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    check: Callable[[Context], None] | None = None
    flags: Callable[[argparse.ArgumentParser], None] | None = None
    describe: Callable[[Context], str] | None = None
    recap: Callable[[Context], None] | None = None
    in_run: bool = True
    resumes: bool = False
    always: bool = False
    every_process: bool = False
    uses_model: bool = False
    example: str = ""

    def place(self, context: Context) -> str:
        """The absolute path of its finished result."""
        assert self.folder is not None, f"{self.name} has no results"
        inside = (self.subfolder(context),) if self.subfolder else ()
        return context.home.join(self.folder, *inside)

    @property
    def trained(self) -> bool:
        """Whether its training continues from a checkpoint when settings change."""
        return bool(self.changeable)

    def uses(self) -> tuple[str, ...]:
        """All configuration names that the stage may use."""
        names = [*self.configures, *(name.split(".")[0] for name in self.ignores)]
        return tuple(dict.fromkeys(names))

    def __call__(self, context: Context) -> int:
        """Runs the stage, with its own keyword arguments (if it has any) configured."""
        configurable = len(inspect.signature(self.run).parameters) > 1
        run = context.configured(self.name) if configurable else self.run
        return run(context) or 0

    def ignored(self, setting: str) -> bool:
        """Whether a setting has no influence on results."""
        return _among(setting, self.ignores)

    def may_change(self, setting: str) -> bool:
        """Whether training continues from a checkpoint with another value of this setting."""
        return _among(setting, self.changeable) and setting not in self.fixed

    def manifest(self, context: Context) -> Manifest:
        """The manifest of results made now."""
        inputs = {}
        for pattern in self.inputs(context):
            for name, path in context.work.expand(pattern).items():
                inputs[name] = context.work.fingerprint(path)
        settings = {n: value for n, value in context.settings.items() if not self.ignored(n)}
        seed = {"SEED": context.macros.get("SEED")}
        if self.may_change("SEED"):  # else only recorded: runs of all seeds share earlier stages
            settings = {**seed, **settings}
        return Manifest(
            stage=self.name,
            format=self.format,
            inputs=inputs,
            settings=settings,
            provenance={**provenance(), **{k: str(v) for k, v in seed.items()}},
        )


def _among(setting: str, names: Sequence[str]) -> bool:
    """Whether `names` contains the `Name.parameter` or the `Name` of `scope/Name.parameter`."""
    key = setting.split("/")[-1]
    return key in names or key.split(".")[0] in names
