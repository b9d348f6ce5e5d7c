"""The reach of forged feedback, with the defences of the service off and on.

A simulated shop's log is counted, except its last two days. These go through store, trust and
counts as in a service, while an attacker sends feedback that claims searches, clicks and orders of
an unwanted text. The result is the share of other visitors' candidates that contain the text: the
level `popular` shows them, and a model would choose from them. No model is trained.

*Off* means: any request id, any number of visitors of a source, every anonymous row a visitor, no
limit of repeats, no minimum share of a new query. `min_users` is the same in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from onesug_jax.logs.asof.config import DAY_MS, HOUR_MS, AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import Event, observe, read_events
from onesug_jax.logs.simulate import simulate
from onesug_jax.serve import feedback
from onesug_jax.serve.live import LiveCounts
from onesug_jax.serve.trust import TooMany, Trust

_VOLUMES = (0.01, 0.04, 0.05, 0.2, 1.0)  # forged events as a share of a prefix's honest visitors
_PREFIXES, _LETTERS = 12, 3  # number of attacked prefixes, and their greatest length
_TOP, _DAYS = 10, 2
_ONE = "203.0.113.5"
_OFF = feedback.FeedbackConfig(trust="all", visitors_per_source=None, feedback_per_minute=None)
# Name, invented users a day (None: any number), served ids, many sources.
_KINDS = (
    ("nameless rows", 0, False, False),
    ("nameless rows, served ids", 0, True, False),
    ("one source, invented users and ids", None, False, False),
    ("one source, invented users, served ids", None, True, False),
    ("one source that stays below the limits", 1, True, False),
    ("many sources, served ids", None, True, True),
)


@dataclasses.dataclass(frozen=True)
class Shop:
    """A log: the events before its last days, those of the last days, and the attacked prefixes
    with the visitors who typed them in the whole log.
    """

    before: list[Event]
    last: list[Event]
    visitors: dict[str, list[str]]

    @classmethod
    def simulated(cls, requests: int) -> Shop:
        """A shop with `requests` in 28 days."""
        with tempfile.TemporaryDirectory() as folder:
            simulate(folder, requests=requests, ceiling=False)
            files = [os.path.join(folder, f"{name}.parquet") for name in ("train", "dev")]
            events = list(read_events(files))
        typed: dict[str, dict[str, None]] = {}
        for event in events:
            if 0 < len(event.prefix) <= _LETTERS:
                typed.setdefault(event.prefix, {})[event.visitor] = None
        most = sorted(typed, key=lambda prefix: (-len(typed[prefix]), prefix))[:_PREFIXES]
        start = events[-1].time_ms - _DAYS * DAY_MS
        return cls(
            [event for event in events if event.time_ms < start],
            [event for event in events if event.time_ms >= start],
            {prefix: list(typed[prefix]) for prefix in most},
        )


class Service:
    """Store, trust and counts of a shop, without HTTP and without a model."""

    def __init__(self, folder: str, shop: Shop, min_users: int, defended: bool):
        path, self._defended = os.path.join(folder, "events.sqlite"), defended
        config = AsOfConfig(min_users=min_users)
        if not defended:
            config = dataclasses.replace(config, max_repeats=1_000_000, new_share=0)
        state = AsOf(sorted({event.query for event in shop.before}), config)
        for event in shop.before:
            observe(state, event)
        self.now = state.latest_ms
        state.settle()
        limits = feedback.FeedbackConfig(keep_days=None)
        self._store = feedback.FeedbackStore(path, limits if defended else _OFF)
        self._trust = Trust(self._store, keyed=False, now=lambda: self.now / 1000)
        self._counts = LiveCounts(state, self._store, now_ms=lambda: self.now)
        self._sent = 0
        self._waiting: list[Future] = []

    def send(self, event: feedback.Event, source: str, served: bool) -> None:
        """Sends feedback; with `served`, after requesting the list."""
        self._sent += 1
        self.now = max(self.now, event.timestamp_ms)
        name = f"r{self._sent}"
        if served:
            name = self._trust.request_id(event.prefix, event.user_id, source)
        event = dataclasses.replace(event, request_id=name)
        if not self._defended and not event.user_id:
            event = dataclasses.replace(event, session_id=name)
        with contextlib.suppress(TooMany):
            self._trust.admit(source)
            trusted = self._trust.trusts(event, source)
            self._waiting.append(self._store.add(event, trusted))
            if len(self._waiting) >= 256:
                self._written()

    def _written(self) -> None:
        for future in self._waiting:
            future.result()
        self._waiting = []

    def lists(self, prefix: str, visitors: Sequence[str]) -> Iterator[list[str]]:
        """The candidates of each visitor for a prefix, most counted first, two hours later."""
        self._written()
        while self._counts.poll():
            pass
        for visitor in visitors:
            items = self._counts.request(prefix, visitor.removeprefix("u"), self.now + 2 * HOUR_MS)
            yield [self._counts.text(int(n) - 1) for n in items.candidates[:_TOP] if n]

    def close(self) -> None:
        """Closes counts and store."""
        self._counts.close()
        self._store.close()


def poison(requests: int) -> None:
    """Prints the reach of every kind of attack at every volume."""
    shop = Shop.simulated(requests)
    sizes = [len(visitors) for visitors in shop.visitors.values()]
    print(
        f"{requests:,} requests; prefixes {', '.join(shop.visitors)}, typed by {min(sizes)} to "
        f"{max(sizes)} visitors in 28 days; all forged feedback comes on the last two"
    )
    print("cells: share of other visitors' lists with the text in their top 10 (its best place)")
    for min_users in (5, 1):
        print(f"\nmin_users = {min_users:<27}" + "".join(f"{v:>19.0%}" for v in _VOLUMES))
        for kind in _KINDS:
            for defended in (False, True):
                cells = [attacked(shop, min_users, defended, kind, v) for v in _VOLUMES]
                name = "  defended" if defended else kind[0]
                print(f"{name:<39}" + "".join(f"{cell:>19}" for cell in cells), flush=True)


def attacked(shop: Shop, min_users: int, defended: bool, kind: tuple, volume: float) -> str:
    """One cell: the last days with one kind of attack on all prefixes."""
    _, users, served, many = kind
    forged = []
    for place, (prefix, visitors) in enumerate(shop.visitors.items()):
        count = round(volume * len(visitors))
        for number in range(count):
            time_ms = shop.last[0].time_ms + int(_DAYS * DAY_MS * (number + 0.5) / count)
            one = feedback.Event(
                "",
                _invented(users, place, number, time_ms),
                timestamp_ms=time_ms,
                prefix=prefix,
                query=f"{prefix}zzz forged",
                clicked_items=["i"],
                ordered_items=["i"],
            )
            forged.append(
                (one, f"10.{place}.{number >> 8}.{number & 255}" if many else _ONE, served)
            )
    honest = [(_feedback(event), f"visitor {event.visitor}", True) for event in shop.last]
    with tempfile.TemporaryDirectory() as folder:
        service = Service(folder, shop, min_users, defended)
        for sent in sorted([*honest, *forged], key=lambda sent: sent[0].timestamp_ms):
            service.send(*sent)
        reached, lists, best = 0, 0, _TOP
        for prefix, visitors in shop.visitors.items():
            for candidates in service.lists(prefix, visitors):
                lists += 1
                text = f"{prefix}zzz forged"
                if text in candidates:
                    reached += 1
                    best = min(best, candidates.index(text))
        service.close()
    return f"{reached / lists:.0%} ({best + 1})" if reached else "0 %"


def _invented(users: int | None, place: int, number: int, time_ms: int) -> str:
    """The invented user of an attacker's next feedback."""
    if users == 0:
        return ""
    return f"forged{place}-{number if users is None else (time_ms // DAY_MS, number % users)}"


def _feedback(event: Event) -> feedback.Event:
    return feedback.Event(
        "",
        event.user,
        timestamp_ms=event.time_ms,
        prefix=event.prefix,
        query=event.query,
        clicked_items=["i"] if event.level >= 4 else [],
        ordered_items=["i"] if event.level >= 5 else [],
    )
