"""Several processes as one run: joins them where the environment says that there are others.

`ONESUG_PROCESSES` says how many there are, `ONESUG_PROCESS` which of them this one is (from 0), and
`ONESUG_COORDINATOR` where process 0 listens (host:port). `ONESUG_PROCESSES=auto` leaves all three
to jax, which knows Cloud TPU pods and SLURM. Without these variables nothing happens, and jax is
not imported. What each process then does is the stages' matter; launch/*_train.sh set them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping

from onesug_jax.errors import UserError

COUNT, INDEX, COORDINATOR = "ONESUG_PROCESSES", "ONESUG_PROCESS", "ONESUG_COORDINATOR"
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Place:
    """This process's place among the others; `None` for what jax is to find out itself."""

    count: int | None = None
    index: int | None = None
    coordinator: str | None = None


def place(environment: Mapping[str, str]) -> Place | None:
    """What the environment says; None: this process is alone.

    Raises:
      UserError: a variable is missing, or its value cannot be.
    """
    said = {name: environment.get(name, "").strip() for name in (COUNT, INDEX, COORDINATOR)}
    if not any(said.values()):
        # A pod on Kubernetes names its hosts; elsewhere launch/tpu_train.sh sets auto.
        pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        return Place() if pod else None
    if said[COUNT] == AUTO:
        wrong = [name for name in (INDEX, COORDINATOR) if said[name]]
        if wrong:
            raise UserError(
                f"{COUNT}={AUTO} leaves the rest to jax, found {wrong[0]}={said[wrong[0]]!r} too: "
                f"unset it, or set {COUNT} to a number."
            )
        return Place()
    count = _number(COUNT, said[COUNT], "the number of processes, or auto", least=1)
    if count == 1 and not said[COORDINATOR] and said[INDEX] in ("", "0"):
        return None
    index = _number(INDEX, said[INDEX], f"this process's number, 0 to {count - 1}", below=count)
    if not re.fullmatch(r"\S+:\d+", said[COORDINATOR]):
        raise UserError(
            f"{COORDINATOR}: expected host:port of process 0, the same in every process, found "
            f"{said[COORDINATOR]!r}."
        )
    return Place(count, index, said[COORDINATOR])


def _number(name: str, text: str, what: str, *, least: int = 0, below: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        raise UserError(
            f"{name}: expected {what}, found {text or 'nothing'}; {COUNT}, {INDEX} and "
            f"{COORDINATOR} are set together, or none of them."
        )
    return int(text)


def start_processes(environment: Mapping[str, str] | None = None) -> None:
    """Joins this process to the others; returns when all are there (jax waits up to 5 minutes).

    To be called before anything asks jax for devices. A second call does nothing.

    Raises:
      UserError: the variables are wrong, or `auto` where jax finds nothing to join.
    """
    here = place(os.environ if environment is None else environment)
    if here is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if here.count is None:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"{COUNT}={AUTO}: jax finds neither a Cloud TPU pod nor SLURM here ({error}); set "
                f"{COUNT}, {INDEX} and {COORDINATOR}, or none of them."
            ) from None
    else:
        # Deactivated: inside SLURM jax would otherwise take one device of the host, not all.
        jax.distributed.initialize(
            here.coordinator, here.count, here.index, cluster_detection_method="deactivate"
        )
    # All tell each other of their devices here; later, one that is late by two minutes is an error.
    jax.devices()


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Inside, a failure ends a process that has joined others at once, after its message.

    Otherwise jax waits at exit, for up to five minutes, until the others end too, who wait for this
    one. An end by signal is no failure: all have agreed on it, and leave together.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        failed = isinstance(code, int) and 0 < code < 128
        if not failed or "jax" not in sys.modules:
            raise
        if not sys.modules["jax"].distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
