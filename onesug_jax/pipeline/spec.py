"""What a stage of the command line is, and what it is given.

A `StageSpec` is data: the folder of WORK_DIR it fills, what it reads, and on which settings its
results depend. `stages/making.py` and `using.py` list them; `plan.py` and `runner.py` run them. Not
to be confused with `train_state.Stage`, one training objective for the training loop.
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
    """All that a stage is given.

    `configured(name)` returns a library function or class with its configuration injected: only
    arguments that the configuration leaves open need to be passed; `configured("scope/name")` adds
    what is set for that scope.

    Attributes:
      work: where the stage reads and writes. For a stage that uses the trained model, the bundle of
        the model in use (`workdir.model_in_use`).
      home: the work directory itself, or the version of it in use: its log, its reports.
      settings: the effective configuration, {"pretrain.steps": 400, ...}.
      given: names that this very command set, by flag or file.
      named: the user named this stage itself, rather than `run`.
      out: the folder that this stage writes; it takes the place of the last result when it ends.
      config_text: the operative configuration, as a gin file.
      other: (stage, WORK_DIR, bindings) -> exit code; runs another stage elsewhere with some
        bindings changed.
      mirror: where WORK_DIR is a bucket's URL, what brings its files and sends results.
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
        """The log to read, an absolute path: LOG, or the simulated shop's where none is given."""
        return local_log(self.macros["LOG"] or self.work.simulated)

    @property
    def compiled(self) -> str:
        """Where compiled programs stay, so that the second `suggest` starts in seconds."""
        return os.path.join(home_of(self.macros["WORK_DIR"]), ".compiled")

    @property
    def states(self) -> States:
        """Where a training keeps its states."""
        return self.mirror.states(self.out.removesuffix(NEW)) if self.mirror else HERE

    def share(self) -> None:
        """What the primary has written into `out` so far is there in every process; all call it."""
        if self.mirror:
            self.mirror.share(self.out.removesuffix(NEW))

    @property
    def seed(self) -> int:
        """The one seed from which all randomness of the stage follows."""
        return self.macros["SEED"]


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One word of the command line.

    Attributes:
      run: does the work and may return an exit code; its further keyword arguments are configured
        under the stage's name (`pretrain.steps`).
      folder: the folder of WORK_DIR it fills; None for a stage that leaves nothing behind.
      subfolder: the name of a result inside `folder`, where there are several (reports).
      format: raised by a person when what the stage writes changes its meaning.
      inputs: what it reads: paths or globs inside WORK_DIR, or absolute paths.
      also_reads: what else of WORK_DIR must be at hand when it runs, as `inputs` names it; it
        follows from the inputs, or results do not depend on it.
      configures: configuration names whose settings its results depend on.
      changeable: of a trained stage, names (or `Name.parameter`) that may change while its training
        goes on from a checkpoint; every other setting and every input makes another state.
      fixed: exceptions from `changeable`.
      ignores: names (or `Name.parameter`) that it uses but that do not change results.
      follows: folders among the inputs whose change makes a trained stage start anew, without a
        word, beside its old result (rwr starts from what pretrain made).
      check: raises UserError where settings, machine or inputs do not fit; touches nothing.
      describe: what --dry_run shows of what it would make: array shapes, runs.
      recap: shows earlier results when the stage is skipped.
      in_run: part of `run`, in the order of the registry.
      resumes: goes on with what a run of the same inputs and settings left when it was killed.
      always: never up to date when named itself (evaluate).
      every_process: every process of a run takes part, not the primary alone.
      uses_model: reads the bundle of the model in use.
      example: what follows PROGRAM in the help text.
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
        """The folder, an absolute path, that its finished result has."""
        assert self.folder is not None, f"{self.name} leaves nothing behind"
        inside = (self.subfolder(context),) if self.subfolder else ()
        return context.home.join(self.folder, *inside)

    @property
    def trained(self) -> bool:
        """Whether its training goes on from a checkpoint when settings change."""
        return bool(self.changeable)

    def uses(self) -> tuple[str, ...]:
        """All configuration names the stage may ask for."""
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
        """Whether training goes on from a checkpoint with another value of this setting."""
        return _among(setting, self.changeable) and setting not in self.fixed

    def manifest(self, context: Context) -> Manifest:
        """What results made now would be made from."""
        inputs = {}
        for pattern in self.inputs(context):
            for name, path in context.work.expand(pattern).items():
                inputs[name] = context.work.fingerprint(path)
        settings = {n: value for n, value in context.settings.items() if not self.ignored(n)}
        seed = {"SEED": context.macros.get("SEED")}
        if self.may_change("SEED"):  # else recorded only: seeds share what is before `pretrain`
            settings = {**seed, **settings}
        return Manifest(
            stage=self.name,
            format=self.format,
            inputs=inputs,
            settings=settings,
            provenance={**provenance(), **{k: str(v) for k, v in seed.items()}},
        )


def _among(setting: str, names: Sequence[str]) -> bool:
    """Whether `scope/Name.parameter` is one of `names`, given whole or as `Name` alone."""
    key = setting.split("/")[-1]
    return key in names or key.split(".")[0] in names
