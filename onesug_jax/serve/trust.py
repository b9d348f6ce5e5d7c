"""Trust in feedback: which events may change the lists of other users.

Every client can send feedback. Three rules limit the influence of one sender:

- A request id of /suggest is a signature over prefix, user and time. Feedback with an id of another
  prefix or user enters only its user's history: it is not counted and not trained on
  (`FeedbackConfig.trust`).
- A *source* is the address of a client, for IPv6 its /64 network. A few visitors of a source count
  toward a query on a day, each once, and the feedback of a source per minute is limited. A caller
  with the API key is the shop itself, which is trusted with its visitors, and is no source.
- All anonymous searches of a day are one visitor, and a visitor's repeats of a day count a few
  times. Both are part of the counts (`logs.schema.visitor_of`, `AsOfConfig.max_repeats`).

This is no defence against a sender with many addresses. The limits of sources apply to one process
and restart with it.
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
_PAIRS = 1 << 18  # most (source, query) pairs of a day in memory
_HOUR = 3600.0


class TooMany(Exception):
    """Too much feedback from one source; retry in `after` seconds."""

    def __init__(self, after: float):
        super().__init__("too much feedback from this address")
        self.after = after


class RequestIds:
    """Makes and checks the signed ids of served lists.

    Args:
      secret: shared by the servers of one store.
      hours: maximum age of an id.
      now: the clock, seconds since 1970.
    """

    def __init__(self, secret: bytes, hours: float, now: Callable[[], float] = time.time):
        self._secret, self._hours, self._now = secret, hours, now

    def make(self, prefix: str, user_id: str) -> str:
        """An id for the list of a prefix and a user: 58 characters."""
        head = secrets.token_bytes(_RANDOM) + int(self._now()).to_bytes(_TIME, "big")
        return (head + self._signature(head, prefix, user_id)).hex()

    def verify(self, request_id: str, prefix: str, user_id: str) -> bool:
        """Whether an id was made for this prefix and user, and is not too old."""
        try:
            content = bytes.fromhex(request_id)
        except ValueError:
            return False
        # The store would treat another spelling of the same bytes as another request.
        if content.hex() != request_id or len(content) != _RANDOM + _TIME + _SIGNATURE:
            return False
        head, signature = content[:-_SIGNATURE], content[-_SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(head, prefix, user_id)):
            return False
        return self._now() - int.from_bytes(head[_RANDOM:], "big") <= self._hours * _HOUR

    def _signature(self, head: bytes, prefix: str, user_id: str) -> bytes:
        parts = (text.encode("utf-8", "surrogatepass") for text in (prefix, user_id))
        sized = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._secret, head + sized, hashlib.sha256)[:_SIGNATURE]


def secret_of(folder: str) -> bytes:
    """The secret in the folder of a store; the first server makes it.

    Raises:
      UserError: it cannot be read or made, or has another length.
    """
    path = os.path.join(folder, SECRET)
    try:
        if not os.path.exists(path):
            number, new = tempfile.mkstemp(dir=folder, prefix=f"{SECRET}.")  # mode 0600
            with os.fdopen(number, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            with contextlib.suppress(FileExistsError):  # another server was first
                os.link(new, path)
            os.unlink(new)
        with open(path, "rb") as file:
            secret = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot store the secret of request ids: {error}") from None
    if len(secret) != _SECRET_BYTES:
        raise UserError(
            f"{path}: expected {_SECRET_BYTES} bytes, found {len(secret)}; delete the file for a "
            "new secret"
        )
    return secret


class RateLimit:
    """Limits the events of each source per minute with a token bucket.

    Args:
      per_minute: rate and capacity of a bucket; None: no limit.
      now: the clock, seconds.
      capacity: most sources in memory; the least recently seen is dropped.
    """

    def __init__(
        self,
        per_minute: int | None,
        now: Callable[[], float] = time.monotonic,
        capacity: int = _SOURCES,
    ):
        self._most, self._now, self._capacity = per_minute, now, capacity
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[float, float]] = {}  # source -> (tokens, time)

    def wait(self, source: str) -> float:
        """Takes a token and returns 0; without a token, the seconds until there is one."""
        if self._most is None:
            return 0.0
        interval = 60 / self._most
        with self._lock:
            now = self._now()
            tokens, at = self._tokens.pop(source, (float(self._most), now))
            tokens = min(self._most, tokens + (now - at) / interval)
            wait = max(0.0, (1 - tokens) * interval)
            self._tokens[source] = (tokens if wait else tokens - 1, now)
            if len(self._tokens) > self._capacity:
                del self._tokens[next(iter(self._tokens))]
            return wait


class VisitorLimit:
    """Limits the visitors of a source that count toward a query on one day (UTC), each once.

    Args:
      most: None: no limit.
      capacity: most (source, query) pairs in memory; the oldest is dropped.
    """

    def __init__(self, most: int | None, capacity: int = _PAIRS):
        self._most, self._capacity = most, capacity
        self._lock, self._day = threading.Lock(), 0
        self._pairs: dict[int, dict[int, int]] = {}  # (source, query) -> visitor -> request

    def counts(self, source: str, event: Event) -> bool:
        """Whether an event's visitor is among the first `most` of its source, query and day, and
        has no other request there.
        """
        if self._most is None:
            return True
        day = event.timestamp_ms // DAY_MS
        visitor = hash_of(visitor_of(event.user_id, event.session_id, event.timestamp_ms))
        with self._lock:
            if day > self._day:
                self._day, self._pairs = day, {}
            visitors = self._pairs.setdefault(hash_of(source, event.query), {})
            if len(self._pairs) > self._capacity:
                del self._pairs[next(iter(self._pairs))]
            request = hash_of(event.request_id)
            if visitor not in visitors and len(visitors) < self._most:
                visitors[visitor] = request
            return visitors.get(visitor) == request


class Trust:
    """The rules of one server. All methods may be called from any thread.

    Args:
      store: its folder contains the secret, its config the limits.
      keyed: whether all callers have the API key.
      now: the clock, seconds since 1970.

    Raises:
      UserError: as `secret_of`.
    """

    def __init__(self, store: FeedbackStore, keyed: bool, now: Callable[[], float] = time.time):
        config = store.config
        if isinstance(store, AbsentStore):  # accepts no feedback, so ids are never verified
            secret = secrets.token_bytes(_SECRET_BYTES)
        else:
            secret = secret_of(os.path.dirname(store.path) or ".")
        self._ids = RequestIds(secret, config.id_hours, now)
        self._all, self._keyed = config.trust == "all", keyed
        self._feedback = RateLimit(config.feedback_per_minute, now)
        self._served = RateLimit(config.ids_per_minute, now)
        self._visitors = VisitorLimit(config.visitors_per_source)

    def source(self, host: str | None) -> str | None:
        """The source of a client's address; None for callers with the API key."""
        return None if self._keyed else client_of(host or "")

    def request_id(self, prefix: str, user_id: str, source: str | None) -> str:
        """The id of a list; not signed for a source above `ids_per_minute`."""
        if source is not None and self._served.wait(source):
            return secrets.token_hex(_RANDOM)
        return self._ids.make(prefix, user_id)

    def admit(self, source: str | None) -> None:
        """Counts feedback of a source.

        Raises:
          TooMany: it is above `feedback_per_minute`.
        """
        wait = 0.0 if source is None else self._feedback.wait(source)
        if wait:
            raise TooMany(wait)

    def trusts(self, event: Event, source: str | None) -> bool:
        """Whether an event may be counted and exported."""
        served = self._all or self._ids.verify(event.request_id, event.prefix, event.user_id)
        return served and (source is None or self._visitors.counts(source, event))
