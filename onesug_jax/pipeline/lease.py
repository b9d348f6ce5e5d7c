"""One writer in a bucket: an object that its holder writes again every few seconds.

Of several that want it at once, one creates it. Who finds it there watches it: when it changes, its
holder is alive, and the command is refused; when it does not change for LEASE seconds, its holder
is gone, and it is taken over. No clocks are compared.

It does not protect from a holder that the network cut off for longer than LEASE seconds and that
writes on when it comes back, nor in the moment in which two commands take over the lease of a dead
one. Whoever lost the lease notices at the next beat, and its next push is refused. Results are
whole in any case: the last one that was finished counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time

from onesug_jax.errors import UserError
from onesug_jax.pipeline import lock
from onesug_jax.pipeline.store import Store

FILE = "_lease.json"
BEAT, LEASE = 15.0, 60.0  # seconds


class Lease:
    """Holds the work directory (or its reports) at a URL for writing while the context lasts.

    Raises:
      UserError: on entering, when another command holds it: its host, process and start time.
    """

    def __init__(self, url: str, command: str, beat: float = BEAT, lease: float = LEASE):
        self.url, self._store = url, Store(url)
        self._beat, self._lease = beat, lease
        self._about = {
            **lock.about(command),
            "boot": _boot(),
            "token": secrets.token_hex(8),
        }
        self._beats = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        while not self._store.create(FILE, self._content()):
            self._wait_until_free()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._end.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(UserError):  # it runs out by itself
                self._store.remove([FILE])

    def check(self) -> None:
        """Raise UserError where another command has taken over meanwhile."""
        if self.lost:
            raise UserError(
                f"{self.url}: another command has taken over this work directory while this one "
                "could not reach the bucket. Nothing more is written; give the command again when "
                "the other one is done."
            )

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._about, "beats": self._beats}).encode()

    def _wait_until_free(self) -> None:
        """Returns when nobody holds it any more."""
        first = self._store.read([FILE]).get(FILE)
        if first is None:
            return
        holder = lock.read(first)
        here = all(holder.get(name) == self._about[name] for name in ("host", "boot"))
        gone = here and not _alive(holder.get("process"))
        if not gone:
            print(
                f"{self.url}: held by {lock.in_words(holder)}; waiting {self._lease:.0f} s for a "
                "sign of life",
                flush=True,
            )
        until = time.monotonic() + self._lease
        while not gone:
            time.sleep(min(self._beat, self._lease) / 3)
            now = self._store.read([FILE]).get(FILE)
            if now is None:
                return
            if now != first:
                raise lock.held(self.url, lock.in_words(lock.read(now)))
            gone = time.monotonic() > until
        self._store.remove([FILE])

    def _run(self) -> None:
        while not self._end.wait(self._beat):
            with contextlib.suppress(UserError):  # a network that is down comes back
                now = self._store.read([FILE]).get(FILE)
                if now is None or lock.read(now).get("token") != self._about["token"]:
                    self.lost = True
                    return
                self._store.write(FILE, self._content())


def _boot() -> str:
    """What is another after each start of this machine, and in each container."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)


def _alive(process: object) -> bool:
    try:
        os.kill(int(str(process)), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
