"""Which feedback may move what others see: that of lists which were served, and little of a source.

Anybody who can reach the service can send feedback. Three rules bound what one sender can do:

- A request id of /suggest is signed, over its prefix, user and time. Feedback whose id does not
  bear out its prefix and user is stored for its own user, but moves no counts and is not learnt
  from (`FeedbackConfig.trust`).
- A *source* is the address of a client, in IPv6 its network of 64 bits. Of one source a few
  visitors a day count toward a query, each once, and only so much feedback a minute is taken.
  Whoever presents the API key is the shop itself, which vouches for its visitors, and is no source.
- Nameless searches of a day are one visitor, and a visitor's repeats of a day count a few times.
  Both are part of the counts (`logs.schema.visitor_of`, `AsOfConfig.max_repeats`).

It does not defend against somebody with many addresses. The limits of sources are this process's
own, and begin anew when it starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.repeats import hash_of
from onesug_jax.logs.schema import visitor_of
from onesug_jax.logs.times import DAY_MS
from onesug_jax.serve.absent import AbsentStore
from onesug_jax.serve.connections import client_of
from onesug_jax.serve.feedback import Event, FeedbackStore

SECRET = "request_ids.key"  # beside the store
_SECRET_BYTES, _RANDOM, _TIME, _SIGNATURE = 32, 8, 5, 16  # bytes
_SOURCES = 1 << 16  # most sources in memory
_PAIRS = 1 << 18  # most (source, query) of a day in memory
_HOUR = 3600.0


class TooMany(Exception):
    """More feedback of one source than is taken; `after` says in how many seconds more is."""

    def __init__(self, after: float):
        super().__init__("too much feedback from this address")
        self.after = after


class RequestIds:
    """Makes and checks the signed ids of served lists.

    Args:
      secret: what only the servers of one store know.
      hours: how old an id may be.
      now: the clock, seconds since 1970.
    """

    def __init__(self, secret: bytes, hours: float, now: Callable[[], float] = time.time):
        self._secret, self._hours, self._now = secret, hours, now

    def make(self, prefix: str, user_id: str) -> str:
        """An id for the list of a prefix and a user: 58 characters."""
        head = secrets.token_bytes(_RANDOM) + int(self._now()).to_bytes(_TIME, "big")
        return (head + self._signature(head, prefix, user_id)).hex()

    def bears_out(self, request_id: str, prefix: str, user_id: str) -> bool:
        """Whether an id was made for this prefix and user, and not too long ago."""
        try:
            found = bytes.fromhex(request_id)
        except ValueError:
            return False
        # Other spellings of the same bytes would be other requests to the store.
        if found.hex() != request_id or len(found) != _RANDOM + _TIME + _SIGNATURE:
            return False
        head, signature = found[:-_SIGNATURE], found[-_SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(head, prefix, user_id)):
            return False
        return self._now() - int.from_bytes(head[_RANDOM:], "big") <= self._hours * _HOUR

    def _signature(self, head: bytes, prefix: str, user_id: str) -> bytes:
        parts = (text.encode("utf-8", "surrogatepass") for text in (prefix, user_id))
        sized = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._secret, head + sized, hashlib.sha256)[:_SIGNATURE]


def secret_of(folder: str) -> bytes:
    """The secret in the folder of a store, made by whichever server comes first.

    Raises:
      UserError: it cannot be read or made, or is none.
    """
    path = os.path.join(folder, SECRET)
    try:
        if not os.path.exists(path):
            number, new = tempfile.mkstemp(dir=folder, prefix=f"{SECRET}.")  # mode 0600
            with os.fdopen(number, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            with contextlib.suppress(FileExistsError):  # another server was sooner
                os.link(new, path)
            os.unlink(new)
        with open(path, "rb") as file:
            secret = file.read()
    except OSError as error:
        raise UserError(
            f"{path}: expected a place for the secret of request ids; {error}"
        ) from None
    if len(secret) != _SECRET_BYTES:
        raise UserError(
            f"{path}: expected {_SECRET_BYTES} bytes, found {len(secret)}; delete it, and a new "
            "one is made"
        )
    return secret


class Pace:
    """At most so many events a minute of each source, as many at once: a token bucket.

    Args:
      per_minute: None: any number.
      now: the clock, seconds.
      room: most sources in memory; the one seen longest ago makes room.
    """

    def __init__(
        self,
        per_minute: int | None,
        now: Callable[[], float] = time.monotonic,
        room: int = _SOURCES,
    ):
        self._most, self._now, self._room = per_minute, now, room
        self._lock = threading.Lock()
        self._of: dict[str, tuple[float, float]] = {}  # source -> events left, at what time

    def wait(self, source: str) -> float:
        """Takes an event where one is left, and returns 0; else in how many seconds one will be."""
        if self._most is None:
            return 0.0
        each = 60 / self._most
        with self._lock:
            now = self._now()
            left, at = self._of.pop(source, (float(self._most), now))
            left = min(self._most, left + (now - at) / each)
            wait = max(0.0, (1 - left) * each)
            self._of[source] = (left if wait else left - 1, now)
            if len(self._of) > self._room:
                del self._of[next(iter(self._of))]
            return wait


class Visitors:
    """At most so many visitors of a source count toward a query on one day (UTC), each once.

    Args:
      most: None: any number.
      room: most (source, query) in memory; the one seen first makes room.
    """

    def __init__(self, most: int | None, room: int = _PAIRS):
        self._most, self._room = most, room
        self._lock, self._day = threading.Lock(), 0
        self._of: dict[int, dict[int, int]] = {}  # visitor -> request

    def counts(self, source: str, event: Event) -> bool:
        """Whether an event's visitor is one of the first ones of its source, query and day, and has
        no other request there.
        """
        if self._most is None:
            return True
        day = event.timestamp_ms // DAY_MS
        who = hash_of(visitor_of(event.user_id, event.session_id, event.timestamp_ms))
        with self._lock:
            if day > self._day:
                self._day, self._of = day, {}
            seen = self._of.setdefault(hash_of(source, event.query), {})
            if len(self._of) > self._room:
                del self._of[next(iter(self._of))]
            request = hash_of(event.request_id)
            if who not in seen and len(seen) < self._most:
                seen[who] = request
            return seen.get(who) == request


class Trust:
    """The rules of one server. All methods may be called from any thread.

    Args:
      store: its folder holds the secret, its config the limits.
      keyed: whether callers have presented the API key.
      now: the clock, seconds since 1970.

    Raises:
      UserError: as `secret_of`.
    """

    def __init__(self, store: FeedbackStore, keyed: bool, now: Callable[[], float] = time.time):
        config = store.config
        if isinstance(store, AbsentStore):  # takes no feedback, so no id is ever checked
            secret = secrets.token_bytes(_SECRET_BYTES)
        else:
            secret = secret_of(os.path.dirname(store.path) or ".")
        self._ids = RequestIds(secret, config.id_hours, now)
        self._all, self._keyed = config.trust == "all", keyed
        self._feedback = Pace(config.feedback_per_minute, now)
        self._served = Pace(config.ids_per_minute, now)
        self._visitors = Visitors(config.visitors_per_source)

    def source(self, host: str | None) -> str | None:
        """The source of a client's address; None: the shop itself."""
        return None if self._keyed else client_of(host or "")

    def request_id(self, prefix: str, user_id: str, source: str | None) -> str:
        """The id of a list. A source that asks too often gets ids that are not signed."""
        if source is not None and self._served.wait(source):
            return secrets.token_hex(_RANDOM)
        return self._ids.make(prefix, user_id)

    def admit(self, source: str | None) -> None:
        """Takes note of feedback.

        Raises:
          TooMany: its source sends more than is taken.
        """
        wait = 0.0 if source is None else self._feedback.wait(source)
        if wait:
            raise TooMany(wait)

    def trusts(self, event: Event, source: str | None) -> bool:
        """Whether an event may move the counts and be learnt from."""
        served = self._all or self._ids.bears_out(event.request_id, event.prefix, event.user_id)
        return served and (source is None or self._visitors.counts(source, event))
