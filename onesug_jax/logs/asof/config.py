"""Settings of the as-of statistics, and the text form of a freshness.

A statistic is as of a *moment*: the request's time minus `freshness`. Only events before that
moment count.
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
    """The counting of as-of statistics, and the candidates of a request.

    Attributes:
      half_lives_days: half-lives of the search counts of a query; None: no decay.
      pair_half_lives_days: the same for searches of a query after a prefix.
      freshness_ms: the time after which a search is visible to others.
      history_freshness_ms: the time after which a search is in its own user's history; None:
        `freshness_ms`. The default is 0, because people refine a search within a minute, and a
        service sees a user's searches at once.
      conversion_delay_ms: the time after its search at which an order or item click is visible. A
        log does not contain the time of an order; a service has the same counts if its orders come
        within this time.
      candidates: most candidates of a request, C; training rows hold fewer
        (`examples.candidates`).
      history: the latest queries of a user, H. The arrays hold those that exist; at 0 they have one
        empty place.
      weights: of the decayed counts, for the order of candidates.
      similar: most candidates that the user's history gives, and at most a quarter: its queries
        that complete the prefix and, if there are more completions than places, the queries nearest
        to it (`index.similar`) among them.
      around: most candidates from the search around the prefix's vector. They need not complete the
        prefix, and are noise while no feature marks them.
      source: the import path of a function of a prefix and a number that returns that many queries,
        best first, and replaces that search; None: that search.
      few: typing errors are corrected if fewer queries complete the prefix.
      breadth: at least this number of completions of a prefix, and at most twice as many, are
        ranked.
      shown: whether candidates have their place in the latest list shown for the prefix as a
        feature.
      most_lists: most prefixes whose latest lists are in memory; the one shown longest ago is
        removed.
      most_pairs: most (prefix, query) pairs, and prefixes, in memory; when they are full, the
        quarter with the lowest counts is removed.
      most_users: most users whose histories are in memory; the one seen longest ago is removed.
      min_users: different visitors that must have searched a query for it to exist.
      new_share: a new query completes a prefix for others while its searches, after any prefix, are
        at least this share of the searches after this prefix; 0: always. Both count at the shortest
        half-life that `half_lives_days` and `pair_half_lives_days` have in common.
      new_from_ms: a query is new if it had no number at the start, or if it began to exist at this
        time, in milliseconds since 1970, or later; None: only the former. `update` sets it.
      max_repeats: most searches of one query by one visitor on one day (UTC) that count, and most
        orders and item clicks. Of a nameless visitor only the first counts, unless nobody in the
        log has a name.
    """

    half_lives_days: tuple[float | None, ...] = (None, 14.0, 3.0, 17 / 24, 0.1)
    pair_half_lives_days: tuple[float | None, ...] = (None, 3.0)
    freshness_ms: float = MINUTE_MS
    history_freshness_ms: float | None = 0
    conversion_delay_ms: float = HOUR_MS
    candidates: int = 320
    history: int = 40
    weights: tuple[float, ...] = (0.05, 1.0, 2.0, 0.0, 0.0)
    similar: int = 80
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
            **dict.fromkeys(("history", "similar", "around", "few", "new_share"), 0),
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
        """Columns of the half-life of `new_share` among those of searches and of pairs."""
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
      UserError: for any other text.
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
