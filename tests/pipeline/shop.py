"""A toy pipeline of three stages and a model "trained" in files: fast enough to be killed often.

`collect` writes a log, `tidy` cleans it, `teach` trains: its state is a chain of hashes over the
log, one link per step, saved after each step. `suggest` prints the state of the model in use.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import traceback

from onesug_jax import configuration, main, stages
from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, fingerprint
from onesug_jax.pipeline import bundle
from onesug_jax.pipeline.spec import StageSpec

# Audit events of changes to the file system; a command is killed at one of them.
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")


def collect(context, *, rows: int = 3) -> None:
    """Writes a log."""
    if rows > 99:
        raise RuntimeError("broken while it runs")
    for row in range(rows):
        pathlib.Path(context.work.simulated, f"{row}.txt").write_text(f"row {row}")


def tidy(context, *, upper: bool = False) -> None:
    """Writes the log as one file."""
    paths = sorted(pathlib.Path(context.work.simulated).glob("*.txt"))
    text = "\n".join(path.read_text() for path in paths)
    with atomic_write(os.path.join(context.work.log, "log.txt")) as file:
        file.write((text.upper() if upper else text).encode())


def state_after(log: str, steps: int) -> str:
    """The state after `steps` steps, computed without files."""
    state = fingerprint(log)
    for step in range(steps):
        state = fingerprint(state, step)
    return state


def teach(context, *, steps: int = 3, width: int = 1) -> None:
    """Extends the saved chain to `steps` links."""
    log = pathlib.Path(context.work.log, "log.txt").read_text()
    path = pathlib.Path(context.work.pretrain, "state.txt")
    done, state = 0, fingerprint(log)
    if path.exists():
        saved, state = path.read_text().split()
        done = int(saved)
    while done < steps:
        state = fingerprint(state, done)
        done += 1
        with atomic_write(str(path)) as file:
            file.write(f"{done} {state}".encode())
    bundle.make(context.work, "pretrain", ["log/*", "pretrain.new/state.txt"])


def check_teach(context) -> None:
    """Refuses invalid settings."""
    if context.settings["teach.steps"] < 1:
        raise UserError(f"teach.steps={context.settings['teach.steps']}: expected at least 1")


def suggest(context) -> None:
    """Prints the state of the model in use."""
    print(pathlib.Path(context.work.pretrain, "state.txt").read_text(), flush=True)


SPECS = (
    StageSpec("collect", "", collect, "simulated", configures=("collect",)),
    StageSpec("tidy", "", tidy, "log", inputs=lambda c: ("simulated/*.txt",), configures=("tidy",)),
    StageSpec(
        "teach",
        "",
        teach,
        "pretrain",
        inputs=lambda c: ("log/log.txt",),
        configures=("teach",),
        changeable=("teach.steps", "SEED"),
        check=check_teach,
    ),
    StageSpec("suggest", "", suggest, in_run=False, uses_model=True),
    stages.STAGES["run"],
)


def install(monkeypatch) -> None:
    """Replaces the real stages by these."""
    for module in (main, configuration):
        monkeypatch.setattr(module, "STAGES", {spec.name: spec for spec in SPECS})
    for name in ("collect", "tidy", "teach"):
        monkeypatch.setitem(stages.CONFIGURABLES, name, f"tests.pipeline.shop:{name}")
    main.read_config()  # imports the configured modules once for all children


def run_in_child(words: list[str], kill_at: int | None = None) -> tuple[int, str]:
    """Runs a command in a child process; returns its exit code (-9: killed) and its output.

    Args:
      kill_at: the number of the change to the file system at which it is killed.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event not in _EVENTS or (event == "open" and not _writes(arguments)):
                return
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        if kill_at is not None:
            sys.addaudithook(count)
        code = 1
        try:
            code = main.main(words)
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def _writes(arguments: tuple) -> bool:
    mode, flags = arguments[1:3]
    return (
        bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "w" in (mode or "")
    )


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Relative path -> content of all files under a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
