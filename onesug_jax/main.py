"""The entry point, `python -m onesug_jax.main STAGE ...`.

Configuration is read in this order (`configuration`), and later values win: defaults.gin, the
model's file, the mesh's file, WORK_DIR/config.gin, each --gin_file, flags. Every stage of the
command is checked and planned before anything is written. A stage takes its configured functions
from its Context.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from onesug_jax import cli, configuration, doctor
from onesug_jax.configuration import Config, read_config
from onesug_jax.errors import UserError, file_error, plain, refusal
from onesug_jax.files import atomic_write
from onesug_jax.pipeline import bundle, remote_log, tables, workdir
from onesug_jax.pipeline.lease import Lease
from onesug_jax.pipeline.lock import WriterLock
from onesug_jax.pipeline.mirror import Mirror
from onesug_jax.pipeline.plan import Step, check_folder, check_inputs, plan
from onesug_jax.pipeline.runner import execute, pull
from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.stages import CONFIGURABLES, STAGES, checks, sweeping
from onesug_jax.train import distributed

_EXTRAS = dict.fromkeys(("seqio", "tensorflow", "tensorflow_datasets"), "seqio")
_EXTRAS |= dict.fromkeys(("fastapi", "pydantic", "starlette", "uvicorn"), "serve")


# ------------------------------------------------------------------ contexts


def make_context(
    spec: StageSpec, config: Config, options: Any = None, *, named: bool = True
) -> Context:
    """The context of a stage; its configurables are imported when the first one is requested."""
    full = config
    names = config.reach(spec.uses())
    config = config.seen_by(spec.name)

    def configured(name: str) -> Callable[..., Any]:
        if name.split("/")[-1] not in names:
            raise LookupError(f"stage {spec.name} uses {name}: add it to its StageSpec")
        configuration.inject(names, config)
        return configuration.configured(name)

    def other(stage: str, folder: str, changes: Mapping[str, Any]) -> int:
        changed = full.with_bindings({"WORK_DIR": folder, **changes})
        context = make_context(STAGES[stage], changed, options, named=False)
        return execute(STAGES[stage], context, may_replace=True)

    path = config.macro("WORK_DIR")
    home = workdir.WorkDir(path)
    work = home
    if spec.uses_model:
        home = workdir.WorkDir(workdir.published(home.path))
        with contextlib.suppress(UserError):  # `_check` reports it if this command trains no model
            work = workdir.WorkDir(workdir.model_in_use(path))
    return Context(
        work=work,
        home=home,
        macros={name: config.macro(name) for name in cli.MACROS},
        configured=configured,
        settings={key: config.resolved(value) for key, value in config.settings(names).items()},
        options=options,
        given=frozenset(config.given),
        named=named,
        config_text=config.text(names, defaults=True),
        other=other,
        mirror=config.mirror,
    )


def context_of(stage: str, *flags: str) -> Context:
    """The context of a stage for this command line, for programs that use its parts.

    Raises:
      UserError: a wrong flag, or no trained model where the stage uses it.
    """
    command = cli.parse([stage, *flags], STAGES, CONFIGURABLES)
    assert isinstance(command, cli.Command), "flags, not --help"
    config = read_config(command.gin_files, command.bindings)
    context = make_context(STAGES[stage], config, command.options)
    if STAGES[stage].uses_model:
        workdir.model_in_use(config.macro("WORK_DIR"))
    pull(STAGES[stage], context)
    return context


# ------------------------------------------------------------------ running


def _stages(stage: str, config: Config, options: Any) -> list[StageSpec]:
    """The stages of a command: one, or for `run` those from --from to --until."""
    if stage != "run":
        return [STAGES[stage]]
    own_log = config.macro("LOG") is not None
    specs = [s for s in STAGES.values() if s.in_run and not (own_log and s.name == "simulate")]
    names = [spec.name for spec in specs]
    first = names.index(options.first) if options.first in names else 0
    last = names.index(options.until) if options.until in names else len(names) - 1
    if first > last:
        raise UserError(f"run --from={options.first} --until={options.until}: nothing lies between")
    return specs[first : last + 1]


def _check(
    specs: Sequence[StageSpec], contexts: Mapping[str, Context], config: Config, options: Any
) -> list[Step]:
    """All checks that are possible before anything is written; returns the plan.

    Raises:
      UserError: the first check that fails.
    """
    makers = {spec.folder: spec.name for spec in STAGES.values() if spec.folder}
    made: list[str] = []
    for spec in specs:
        context = contexts[spec.name]
        if distributed.place_among()[1] > 1 and spec.folder is None:
            raise UserError(
                f"{spec.name} is run by one process, found {distributed.place_among()[1]}: unset "
                f"{distributed.COUNT}."
            )
        if spec.uses_model and not {"pretrain", "rwr"} & set(made):
            workdir.model_in_use(config.macro("WORK_DIR"))
        checks.construct(spec, context, CONFIGURABLES)
        if spec.check:
            spec.check(context)
        check_inputs(spec, context, makers, made)
        made += [spec.folder] if spec.folder else []
    steps = plan(specs, contexts, options.restart, _replaceable(options))
    if any(spec.folder for spec in specs):
        first = contexts[specs[0].name]
        log = first.log if any(spec.name == "ingest" for spec in specs) else None
        space = sum(checks.state_bytes(step, contexts[step.spec.name]) for step in steps)
        check_folder(workdir.WorkDir(config.macro("WORK_DIR")), steps, log, space)
    return steps


def _replaceable(options: Any) -> list[str]:
    """The stages whose trained states this command may replace: from --restart on."""
    order = [spec.name for spec in STAGES.values() if spec.folder]
    return order[order.index(options.restart) :] if options.restart else []


def _dry_run(specs, contexts: Mapping[str, Context], steps: Sequence[Step], path: str) -> None:
    for spec in specs:
        context = contexts[spec.name]
        print(f"# {spec.name}: operative configuration\n{context.config_text}")
        if spec.describe:
            print(f"# {spec.name}: what it makes\n{spec.describe(context)}\n", flush=True)
    if steps:
        print(f"# plan for {path}", *(step.line() for step in steps), sep="\n")


def _notes(spec: StageSpec, context: Context, config: Config) -> Iterator[str]:
    """Notes for the user before the command's own output: changed settings, a stale model."""
    names = set(config.given) & set(config.bindings)
    for key in sorted(names & set(config.remembered)):
        old, new = config.remembered[key], config.given[key]
        if old != new and not (key == "LOG" and workdir.local(str(new)) == old):
            yield f"{key}: {old!r} in {workdir.CONFIG}, {new!r} now"
    if spec.uses_model and context.work.path != context.home.path:
        note = bundle.stale_note(context.home, context.work.path)
        if note:
            yield note


def _run(stage: str, config: Config, options: Any) -> int:
    specs = _stages(stage, config, options)
    home = workdir.WorkDir(config.macro("WORK_DIR"))
    context_for = functools.partial(
        make_context, config=config, options=options, named=stage != "run"
    )
    contexts = {spec.name: context_for(spec) for spec in specs}
    if config.mirror is None and home.name != home.path and any(spec.folder for spec in specs):
        raise UserError(
            f"WORK_DIR = {home.path}: this is the copy of a bucket; name the bucket, "
            f"--gin.WORK_DIR={home.name}"
        )
    reads_log = any(spec.name in ("ingest", "update") for spec in specs)
    if distributed.is_primary() and reads_log or stage == "evaluate" and "LOG" in config.given:
        remote_log.look(config.macro("LOG"), contexts[specs[0].name].home.log)
    steps: list[Step] = []
    distributed.run_on_primary_and_broadcast(
        lambda: steps.extend(_check(specs, contexts, config, options))
    )
    if options.dry_run:
        _dry_run(specs, contexts, steps, home.name)
        return 0
    for note in _notes(specs[-1], contexts[specs[-1].name], config):
        print(f"note: {note}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        if distributed.is_primary():
            if stage == "update" or any(spec.folder and not spec.uses_model for spec in specs):
                _hold(stack, home.path, stage, config.mirror)
            if any(spec.folder and not spec.uses_model for spec in specs):
                _remember(home.join(workdir.CONFIG), config)
            elif specs[0].folder:
                _hold(stack, contexts[stage].home.report, stage, config.mirror)
        for spec in specs:
            if config.mirror and not distributed.is_primary():
                config.mirror.refresh()  # finished stages determine the model in use
            code = execute(
                spec,
                context_for(spec),
                restart=spec.name == options.restart,
                may_replace=spec.name in _replaceable(options),
            )
            if code:
                return code
    return 0


def _hold(stack: contextlib.ExitStack, folder: str, stage: str, mirror: Mirror | None) -> None:
    """Locks a folder of WORK_DIR for writing by this command, also in the bucket."""
    stack.enter_context(WriterLock(folder, stage))
    if mirror:
        mirror.lease = stack.enter_context(Lease(tables.shown(folder), stage))
        mirror.refresh(writing=folder == mirror.home)


def _remember(path: str, config: Config) -> None:
    text = config.memory()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
    with atomic_write(path) as out:
        out.write(text.encode())
    if config.mirror:
        config.mirror.push_loose()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 0 done, 2 a mistake that the user can fix."""
    argv = sys.argv[1:] if argv is None else argv
    work = "WORK_DIR"
    try:
        command = cli.parse(argv, STAGES, CONFIGURABLES)
        if isinstance(command, str):
            print(command)
            return 0 if argv else 2
        if vars(command.options).setdefault("restart", None) == "run":
            raise UserError("run --restart=STAGE: expected the first stage to make again.")
        if configuration.gin is None:
            if command.stage == "doctor":
                return doctor.report(os.getcwd())
            raise UserError("the package gin-config is missing: run `bash launch/prepare.sh`.")
        config = read_config(command.gin_files, command.bindings)
        work = config.macro("WORK_DIR")
        for name, value in sweeping.bindings_of(command.options):
            swept = (name, cli.quoted(name, value))
            read_config(command.gin_files, [*command.bindings, swept])
        if not command.options.dry_run:
            distributed.start_processes()
            distributed.only_primary_speaks()
        return _run(command.stage, config, command.options)
    except UserError as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"error: {argv[0]} needs the package {error.name}, which is not installed: "
            f"pip install 'onesug_jax[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the system refused something; a library may have wrapped the error
        place, doing = f"a file in {work}", "reading or writing"
        refused = refusal(place, doing, error)
        if refused is None and isinstance(error, OSError):
            refused = file_error(place, doing, error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 2


def script() -> NoReturn:
    """The console script `onesug`: `main`, then the end of the process."""
    with distributed.failing_at_once():
        sys.exit(main())


if __name__ == "__main__":
    script()
