"""Several processes as one run, if environment variables say so; launch/*_train.sh set them.

`ONESUG_PROCESSES` is their number, `ONESUG_PROCESS` the index of this one (from 0), and
`ONESUG_COORDINATOR` the address of process 0 (host:port). With `ONESUG_PROCESSES=auto` jax detects
all three on Cloud TPU pods and SLURM. Without these variables nothing happens, and jax is not
imported.

All processes execute the same program. `run_on_primary_and_broadcast` runs a function in process 0
for all of them, `exchanged` gathers a value of each one, and `barrier` waits for all. These have no
short timeout and use no device: jax's heartbeats detect a lost process.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from onesug_jax.errors import UserError

COUNT, INDEX, COORDINATOR = "ONESUG_PROCESSES", "ONESUG_PROCESS", "ONESUG_COORDINATOR"
AUTO = "auto"
_HEARTBEAT = 60  # seconds without a heartbeat after which a process counts as lost, and all end
_DAY = 24 * 3600 * 1000  # milliseconds
_PIECE = 2**20  # characters of one message
_LOST = (
    "a computation of all processes failed; usually another process of this run was lost. Start "
    "all of them again with the same command: it resumes from the last checkpoint."
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Place:
    """The position of this process in the run; jax detects the fields that are `None`."""

    count: int | None = None
    index: int | None = None
    coordinator: str | None = None


def place(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment variables describe; None if there is only this process.

    Raises:
      UserError: a variable is missing or invalid.
    """
    values = {name: environment.get(name, "").strip() for name in (COUNT, INDEX, COORDINATOR)}
    if not any(values.values()):
        # Kubernetes lists the hosts of a pod; elsewhere launch/tpu_train.sh sets auto.
        pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        return Place() if pod else None
    if values[COUNT] == AUTO:
        surplus = [name for name in (INDEX, COORDINATOR) if values[name]]
        if surplus:
            raise UserError(
                f"{COUNT}={AUTO}: expected no other variable, found "
                f"{surplus[0]}={values[surplus[0]]!r}: unset it, or set {COUNT} to a number."
            )
        return Place()
    count = _number(COUNT, values[COUNT], "the number of processes, or auto", least=1)
    if count == 1 and not values[COORDINATOR] and values[INDEX] in ("", "0"):
        return None
    index = _number(INDEX, values[INDEX], f"this process's number, 0 to {count - 1}", below=count)
    if not re.fullmatch(r"\S+:\d+", values[COORDINATOR]):
        raise UserError(
            f"{COORDINATOR}: expected host:port of process 0, the same in every process, found "
            f"{values[COORDINATOR]!r}."
        )
    return Place(count, index, values[COORDINATOR])


def _number(name: str, text: str, what: str, *, least: int = 0, below: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        raise UserError(
            f"{name}: expected {what}, found {text or 'nothing'}; {COUNT}, {INDEX} and "
            f"{COORDINATOR} are set together, or none of them."
        )
    return int(text)


def start_processes() -> None:
    """Joins this process to the others; returns when all have joined (jax waits up to 5 minutes).

    Call it before jax initialises its devices. A second call does nothing.

    Raises:
      UserError: the variables are wrong, or are `auto` and jax detects no other process.
    """
    here = place(os.environ)
    if here is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if here.count is None:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
        except ValueError as error:
            raise UserError(
                f"{COUNT}={AUTO}: jax finds neither a Cloud TPU pod nor SLURM here ({error}); set "
                f"{COUNT}, {INDEX} and {COORDINATOR}, or none of them."
            ) from None
    else:
        # Without "deactivate", jax inside SLURM uses one device of the host, not all.
        jax.distributed.initialize(
            here.coordinator,
            here.count,
            here.index,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    # All processes exchange their devices here; later a delay of two minutes would be an error.
    jax.devices()


def place_among() -> tuple[int, int]:
    """(index of this process, number of processes); (0, 1) alone. Does not import jax."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return place_among()[0] == 0


def only_primary_speaks() -> None:
    """Drops the standard output of all processes but 0; standard error stays."""
    if not is_primary():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


_calls = itertools.count()  # all processes make the same calls in the same order
_primary_only: list[bool] = []  # not empty while process 0 runs a function and the others wait


def run_on_primary_and_broadcast(decide: Callable[[], T]) -> T:
    """Runs `decide` in process 0; all processes wait for its result, a JSON value.

    Raises:
      UserError: in the other processes if process 0 failed; process 0 raises its own error.
    """
    index, count = place_among()
    if count == 1 or _primary_only:
        return decide()
    key = f"onesug/{next(_calls)}"
    if index:
        answer = json.loads(_receive(key))
        if "error" in answer:
            with contextlib.suppress(Exception):  # process 0 may have ended already
                _meet(f"{key}/failed", 10_000)
            raise UserError(f"process 0 stopped: {answer['error']}")
        return answer["value"]
    _primary_only.append(True)
    try:
        value = decide()
    except BaseException as error:
        _send(key, json.dumps({"error": str(error) or type(error).__name__}))
        with contextlib.suppress(Exception):  # another process may be lost
            _meet(f"{key}/failed", 10_000)
            time.sleep(1)  # jax aborts the others if their coordinator, this process, ends first
        raise
    finally:
        _primary_only.pop()
    _send(key, json.dumps({"value": value}))
    return value


def exchanged(own: bytes) -> list[bytes]:
    """The values of all processes, in their order, in every process."""
    index, count = place_among()
    if count == 1 or _primary_only:
        return [own]
    key = f"onesug/{next(_calls)}"
    _send(f"{key}/{index}", base64.b64encode(own).decode())
    return [
        own if other == index else base64.b64decode(_receive(f"{key}/{other}"))
        for other in range(count)
    ]


def barrier() -> None:
    """Waits until all processes have called it."""
    if place_among()[1] > 1 and not _primary_only:
        _meet(f"onesug/{next(_calls)}", _DAY)


def _client() -> Any:
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()


def _meet(name: str, milliseconds: int) -> None:
    _client().wait_at_barrier(name.replace("/", "_"), milliseconds)


def _send(key: str, text: str) -> None:
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    for number, piece in enumerate(pieces):
        _client().key_value_set(f"{key}/{number}", piece)
    _client().key_value_set(f"{key}/pieces", str(len(pieces)))


def _receive(key: str) -> str:
    pieces = int(_client().blocking_key_value_get(f"{key}/pieces", _DAY))
    return "".join(
        _client().blocking_key_value_get(f"{key}/{number}", _DAY) for number in range(pieces)
    )


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """A failure inside prints its message and ends a process that has joined others at once.

    Otherwise jax waits at exit, for up to five minutes, until the others end, and they wait for
    this process. A stop by signal is no failure: all processes end at the same step.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not (isinstance(code, int) and 0 < code < 128 and "jax" in sys.modules):
            raise
        if not sys.modules["jax"].distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
            if isinstance(error, sys.modules["jax"].errors.JaxRuntimeError):
                print(f"error: {_LOST}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
