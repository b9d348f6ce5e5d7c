"""Several processes as one run: joins them where the environment says that there are others.

`ONESUG_PROCESSES` says how many there are, `ONESUG_PROCESS` which of them this one is (from 0), and
`ONESUG_COORDINATOR` where process 0 listens (host:port). `ONESUG_PROCESSES=auto` leaves all three
to jax, which knows Cloud TPU pods and SLURM; launch/*_train.sh set them. Without these variables
nothing happens, and jax is not imported.

All processes walk through the same program. What one of them is to do for all goes through
`run_on_primary_and_broadcast`, results that each has a part of through `exchanged`; `barrier` is
where they meet. These wait as long as it takes and use no device: jax's heartbeats find out who is
lost.
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
_HEARTBEAT = 60  # seconds of silence after which a process counts as lost, and all end
_DAY = 24 * 3600 * 1000  # milliseconds
_PIECE = 2**20  # characters of one message
_LOST = (
    "what the processes compute together failed; as a rule another process of this run was lost. "
    "Start all of them again with the same command: it goes on from the last checkpoint."
)

T = TypeVar("T")


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


def start_processes() -> None:
    """Joins this process to the others; returns when all are there (jax waits up to 5 minutes).

    To be called before anything asks jax for devices. A second call does nothing.

    Raises:
      UserError: the variables are wrong, or `auto` where jax finds nothing to join.
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
        # Deactivated: inside SLURM jax would otherwise take one device of the host, not all.
        jax.distributed.initialize(
            here.coordinator,
            here.count,
            here.index,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    # All tell each other of their devices here; later, one that is late by two minutes is an error.
    jax.devices()


def place_among() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) alone, without importing jax."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is process 0, which writes files and speaks."""
    return place_among()[0] == 0


def only_primary_speaks() -> None:
    """What other processes print to standard output is dropped; their errors are not."""
    if not is_primary():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


_turns = itertools.count()  # all processes take the same turns
_by_itself: list[bool] = []  # not empty while process 0 does what the others wait for


def run_on_primary_and_broadcast(decide: Callable[[], T]) -> T:
    """What `decide` gives process 0, a JSON value, in every process; the others wait for it.

    Raises:
      UserError: in the others, where process 0 failed; it raises its own error.
    """
    index, count = place_among()
    if count == 1 or _by_itself:
        return decide()
    key = f"onesug/{next(_turns)}"
    if index:
        answer = json.loads(_receive(key))
        if "error" in answer:
            with contextlib.suppress(Exception):  # process 0 may have left before it is answered
                _meet(f"{key}/failed", 10_000)
            raise UserError(f"process 0 stopped: {answer['error']}")
        return answer["value"]
    _by_itself.append(True)
    try:
        value = decide()
    except BaseException as error:
        _send(key, json.dumps({"error": str(error) or type(error).__name__}))
        with contextlib.suppress(Exception):  # one that is lost does not come
            _meet(f"{key}/failed", 10_000)
            time.sleep(1)  # it is this process that answers the others; without it jax aborts them
        raise
    finally:
        _by_itself.pop()
    _send(key, json.dumps({"value": value}))
    return value


def exchanged(own: bytes) -> list[bytes]:
    """What every process gives, in their order, in every process."""
    index, count = place_among()
    if count == 1 or _by_itself:
        return [own]
    key = f"onesug/{next(_turns)}"
    _send(f"{key}/{index}", base64.b64encode(own).decode())
    return [
        own if other == index else base64.b64decode(_receive(f"{key}/{other}"))
        for other in range(count)
    ]


def barrier() -> None:
    """Returns when all processes are here."""
    if place_among()[1] > 1 and not _by_itself:
        _meet(f"onesug/{next(_turns)}", _DAY)


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
    """Inside, a failure ends a process that has joined others at once, after its message.

    Otherwise jax waits at exit, for up to five minutes, until the others end too, who wait for this
    one. An end by signal is no failure: all processes end at the same step.
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
