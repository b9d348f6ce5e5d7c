"""One writer in a bucket: an object that its holder rewrites every few seconds.

One of several commands creates the object. Another command that finds it watches it: if it changes,
its holder is alive, and the command is refused; if it does not change for LEASE seconds, its holder
counts as dead, and the command takes it over. No clocks are compared.

Two writers remain possible when the network cuts a holder off for longer than LEASE seconds and it
then goes on writing, and when two commands take over a dead holder's lease at the same moment. A
holder that lost the lease notices at its next beat, and its next push is refused. Results are
complete in any case: the one that was finished last is valid.
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
            with contextlib.suppress(UserError):  # it expires by itself
                self._store.remove([FILE])

    def check(self) -> None:
        """Raise UserError if another command has taken over."""
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
        """Returns when the lease is free.

        Raises:
          UserError: its holder is alive.
        """
        first = self._store.read([FILE]).get(FILE)
        if first is None:
            return
        holder = lock.read(first)
        same_machine = all(holder.get(name) == self._about[name] for name in ("host", "boot"))
        dead = same_machine and not _alive(holder.get("process"))
        if not dead:
            print(
                f"{self.url}: held by {lock.in_words(holder)}; waiting {self._lease:.0f} s for a "
                "sign of life",
                flush=True,
            )
        until = time.monotonic() + self._lease
        while not dead:
            time.sleep(min(self._beat, self._lease) / 3)
            now = self._store.read([FILE]).get(FILE)
            if now is None:
                return
            if now != first:
                raise lock.held(self.url, lock.in_words(lock.read(now)))
            dead = time.monotonic() > until
        self._store.remove([FILE])

    def _run(self) -> None:
        while not self._end.wait(self._beat):
            with contextlib.suppress(UserError):  # the network may come back
                now = self._store.read([FILE]).get(FILE)
                if now is None or lock.read(now).get("token") != self._about["token"]:
                    self.lost = True
                    return
                self._store.write(FILE, self._content())


def _boot() -> str:
    """An id that differs after each boot of this machine, and in each container."""
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
