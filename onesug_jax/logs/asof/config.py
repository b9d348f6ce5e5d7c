"""Settings of the as-of statistics, and how a freshness is written.

A statistic is as of a *moment*: the request's time minus `freshness`. It is what a log that ends
just before that moment gives.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from onesug_jax.errors import UserError
from onesug_jax.import_path import named

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
SHOWN_COLUMNS = ("shown", "shown_1d")
_UNITS = {"ms": 1, "s": 1000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}


@dataclasses.dataclass(frozen=True)
class AsOfConfig:
    """How statistics as of a request are counted, and how its candidates are found.

    Attributes:
      half_lives_days: of the decayed counts of a query's searches; None: no decay.
      pair_half_lives_days: the same of the searches of a query after a prefix.
      freshness_ms: how long after its time a search is visible to others.
      history_freshness_ms: how long after its time a search is in its own user's history; None: as
        `freshness_ms`. The default is 0, because people refine a search within a minute, and a
        service has what a user did at once.
      conversion_delay_ms: how long after its search an order or item click is visible. A log does
        not say when an order came; one that comes within this time gives a service the same counts.
      candidates: most candidates of a request, C; training rows hold fewer
        (`examples.candidates`).
      history: the latest queries of a user, H; those of them that exist are in the arrays, which
        have a place, an empty one, where it is 0.
      weights: of the decayed counts, for the order of candidates.
      own: candidates that may come from the user's history, however rarely they are searched.
      around: candidates that may come from the search around the prefix's vector and do not
        complete the prefix: noise while no feature marks them.
      source: the import path of a function of a prefix and a number that gives so many queries,
        best first, in place of that search; None: that search.
      few: typing mistakes are corrected where fewer queries complete the prefix.
      breadth: at least so many, and at most twice as many, completions of a prefix are looked at.
      shown: whether a candidate has its place in the list that was shown last for the prefix.
      most_lists: most prefixes whose latest lists are in memory; the one shown longest ago makes
        room.
      most_pairs: most (prefix, query) pairs, and prefixes, in memory; the least counted quarter
        makes room.
      most_users: most users whose histories are in memory; the one seen longest ago makes room.
      min_users: different visitors that must have searched a query for it to exist.
      new_share: a query that is new completes a prefix for others while its searches, after any
        prefix, are at least this share of the searches after this prefix; 0: always. Both count at
        the shortest half-life that `half_lives_days` and `pair_half_lives_days` have in common.
      new_from_ms: a query is new that had no number at the start, or that began to exist at this
        time, in milliseconds since 1970, or later; None: the former alone. `update` sets it.
      max_repeats: searches of one query by one visitor on one day (UTC) that count, the first; of
        those with an order or an item click as many. Of nameless ones only the first, unless
        nobody in the log has a name.
    """

    half_lives_days: tuple[float | None, ...] = (None, 14.0, 3.0, 17 / 24, 0.1)
    pair_half_lives_days: tuple[float | None, ...] = (None, 3.0)
    freshness_ms: float = MINUTE_MS
    history_freshness_ms: float | None = 0
    conversion_delay_ms: float = HOUR_MS
    candidates: int = 320
    history: int = 40
    weights: tuple[float, ...] = (0.05, 1.0, 2.0, 0.0, 0.0)
    own: int = 8
    around: int = 0
    source: str | None = None
    few: int = 1
    breadth: int = 4096
    shown: bool = True
    most_lists: int = 1 << 18
    most_pairs: int = 1 << 20
    most_users: int = 1 << 20
    min_users: int = 1
    new_share: float = 0.25
    new_from_ms: float | None = None
    max_repeats: int = 3

    def __post_init__(self):
        for name in ("half_lives_days", "pair_half_lives_days", "weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        half_lives = (*self.half_lives_days, *self.pair_half_lives_days)
        if not self.half_lives_days or any(h is not None and not h > 0 for h in half_lives):
            raise UserError(
                "AsOfConfig: expected half-lives above 0 days, or None for no decay, and at least "
                f"one of a query's searches; found half_lives_days={self.half_lives_days}, "
                f"pair_half_lives_days={self.pair_half_lives_days}."
            )
        if len(self.weights) != len(self.half_lives_days) or not sum(self.weights) > 0:
            raise UserError(
                "AsOfConfig.weights: expected a number from 0 up, not all 0, for each of "
                f"half_lives_days={self.half_lives_days}; found {self.weights}."
            )
        times = (self.freshness_ms, self.conversion_delay_ms, self.history_freshness_ms or 0)
        if not all(0 <= time < math.inf for time in times):
            raise UserError(
                "AsOfConfig: expected freshness_ms, history_freshness_ms and conversion_delay_ms "
                f"of 0 or more milliseconds; found {times}."
            )
        if self.new_share and not set(self.half_lives_days) & set(self.pair_half_lives_days):
            raise UserError(
                f"AsOfConfig.new_share = {self.new_share}: expected a half-life in both of "
                f"half_lives_days={self.half_lives_days} and pair_half_lives_days="
                f"{self.pair_half_lives_days}; name one in both, or set new_share=0."
            )
        least = {
            **dict.fromkeys(("history", "own", "around", "few", "new_share"), 0),
            **dict.fromkeys(("candidates", "breadth", "min_users", "max_repeats"), 1),
            **dict.fromkeys(("most_lists", "most_pairs", "most_users"), 1),
        }
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(
                    f"AsOfConfig.{name} = {getattr(self, name)}: expected {lowest} or more."
                )

        if self.source is not None:
            named("AsOfConfig.source", self.source, {})
            if not self.around:
                raise UserError(
                    f"AsOfConfig.source={self.source!r}: expected AsOfConfig.around above 0, the "
                    "number of candidates that it may give; found 0."
                )

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the K columns of `Items.candidate_counts`."""
        return (
            *(f"searches_{_name(h)}" for h in self.half_lives_days),
            *("orders", "item_clicks"),
            *(SHOWN_COLUMNS if self.shown else ()),
            *(f"pair_{_name(h)}" for h in self.pair_half_lives_days),
        )

    @functools.cached_property
    def recent(self) -> tuple[int, int]:
        """Where the half-life of `new_share` stands, of searches and of pairs."""
        both = set(self.half_lives_days) & set(self.pair_half_lives_days)
        shortest = min(both, key=lambda days: math.inf if days is None else days)
        return self.half_lives_days.index(shortest), self.pair_half_lives_days.index(shortest)

    @functools.cached_property
    def width(self) -> int:
        """The number of columns K."""
        return len(self.columns)


DEFAULT = AsOfConfig()


def _name(half_life: float | None) -> str:
    return "all" if half_life is None else f"{half_life:.3g}d"


def duration_ms(text: str | float) -> float:
    """Milliseconds of a duration: "90s", "1m", "6h", "1d", "inf", or a number of milliseconds.

    Raises:
      UserError: it is none of these.
    """
    written = str(text).strip()
    number = written.rstrip("dhms")
    unit = written[len(number) :] or "ms"
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not value >= 0:
        raise UserError(
            f"freshness {text!r}: expected a duration such as 90s, 1m, 6h, 1d or inf, or a number "
            "of milliseconds"
        )
    return value
