"""Preference lists: the query that a request led to, and N others (PAPER.md section 4).

`Behaviour` holds the outcome of every row of a log split as query numbers: the searched query and
its level, the other shown queries, and the prefix's pool of mined candidates. `Lists` draws rows,
their positives, and negatives of three levels. A draw is a function of (seed, step), so training
resumes without stored state. Numpy only.
"""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onesug_jax.align.rewards import NEGATIVE, POSITIVE
from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, require_files
from onesug_jax.logs.schema import DAY_MS, Level, request_level

_ATTEMPTS = 12  # draws of a negative at a level before another level is tried
_SHOWN_BY_POPULARITY = 10  # length of a most-popular list that stands in for a shown list
COLUMNS = ("prefix", "query", "shown", "clicked_items", "ordered_items", "timestamp_ms")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """R rows of a split over N indexed queries and P pools.

    Attributes:
      query: int32 `[R]`, the searched query of each row; -1: not indexed.
      level: int8 `[R]`, its level. time_ms: int64 `[R]`, the time of the row.
      shown, shown_offsets: the other indexed queries that the user saw; those of row r are
        shown[shown_offsets[r]:shown_offsets[r + 1]].
      pool: int32 `[R]`, the pool of the row's prefix; -1: none.
      pools, pool_offsets: the pools' queries, in the layout of `shown`.
      queries: N.
      shown_by: "log", or "most_popular" if the log has no shown lists.
    """

    query: np.ndarray
    level: np.ndarray
    time_ms: np.ndarray
    shown: np.ndarray
    shown_offsets: np.ndarray
    pool: np.ndarray
    pools: np.ndarray
    pool_offsets: np.ndarray
    queries: int
    shown_by: str = "log"

    def __len__(self) -> int:
        return len(self.query)

    def save(self, folder: str, split: str) -> None:
        """Writes folder/split.npz."""
        with atomic_write(os.path.join(folder, f"{split}.npz")) as file:
            np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str, split: str) -> Behaviour:
        """Reads folder/split.npz; UserError if it is missing."""
        path = os.path.join(folder, f"{split}.npz")
        require_files([path], "the outcome of each row", "run the rewards stage first.")
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
        arrays["queries"], arrays["shown_by"] = int(arrays["queries"]), str(arrays["shown_by"])
        return cls(**arrays)

    def counts(self) -> np.ndarray:
        """Occurrences of each query at each level, int64 `[6, N]`.

        NOT_SHOW counts the requests whose pool contains the query, where it was neither shown nor
        searched. RAND counts all searches of a query.
        """
        out = np.zeros((len(Level), self.queries), np.int64)
        indexed = self.query >= 0
        for level in POSITIVE:
            rows = indexed & (self.level == level)
            out[level] = np.bincount(self.query[rows], minlength=self.queries)
        out[Level.RAND] = np.bincount(self.query[indexed], minlength=self.queries)
        out[Level.SHOW] = np.bincount(self.shown, minlength=self.queries)
        # All requests of all pools, minus the pools' queries that were shown or searched.
        requests = np.bincount(self.pool[self.pool >= 0], minlength=len(self.pool_offsets) - 1)
        pool_of = np.repeat(np.arange(len(requests)), np.diff(self.pool_offsets))
        pooled = np.bincount(self.pools, weights=requests[pool_of], minlength=self.queries)
        members = np.sort(pool_of * np.int64(self.queries) + self.pools)
        rows = np.repeat(np.arange(len(self)), np.diff(self.shown_offsets))
        for row_pool, query in ((self.pool[rows], self.shown), (self.pool, self.query)):
            valid = (row_pool >= 0) & (query >= 0)
            row_pool, query = row_pool[valid].astype(np.int64), query[valid]
            in_pool = _contains(members, row_pool * self.queries + query)
            pooled -= np.bincount(query[in_pool], minlength=self.queries)
        out[Level.NOT_SHOW] = pooled.astype(np.int64)
        return out


def read_behaviour(
    blocks: Iterable[Mapping[str, Sequence]],
    find: Callable[[str], int],
    queries: int,
    pools: Mapping[str, Sequence[int]],
    popular: Callable[[str, int], Iterable[int]],
) -> Behaviour:
    """The outcomes of the rows of a log split, in order.

    Args:
      blocks: columns `COLUMNS` as lists, block by block.
      find: query -> its number, negative if it is not indexed (mining excludes queries of too few
        people).
      queries: the number of indexed queries.
      pools: prefix -> numbers of its mined candidates.
      popular: (prefix, k) -> numbers of its most popular completions; they stand in for `shown` if
        no row of the log has it.
    """
    pool_of = {prefix: number for number, prefix in enumerate(pools)}
    prefix_numbers: dict[str, int] = {}
    query, level, times, pool = (array.array(kind) for kind in "ibqi")
    prefixes, shown, sizes = (array.array(kind) for kind in "iii")
    any_shown = False
    for block in blocks:
        for prefix, searched, seen, clicked, ordered, time_ms in zip(
            *(block[name] for name in COLUMNS), strict=True
        ):
            own = find(searched)
            query.append(own)
            level.append(request_level(clicked or (), ordered or ()))
            times.append(time_ms)
            pool.append(pool_of.get(prefix, -1))
            prefixes.append(prefix_numbers.setdefault(prefix, len(prefix_numbers)))
            any_shown = any_shown or bool(seen)
            others = [n for n in map(find, seen or ()) if n >= 0 and n != own]
            shown.extend(others)
            sizes.append(len(others))
    if not any_shown:
        lists = [list(popular(prefix, _SHOWN_BY_POPULARITY)) for prefix in prefix_numbers]
        shown, sizes = array.array("i"), array.array("i")
        for prefix_number, own in zip(prefixes, query, strict=True):
            others = [n for n in lists[prefix_number] if n != own]
            shown.extend(others)
            sizes.append(len(others))
    pool_sizes = [len(numbers) for numbers in pools.values()]
    return Behaviour(
        query=np.array(query, np.int32),
        level=np.array(level, np.int8),
        time_ms=np.array(times, np.int64),
        shown=np.array(shown, np.int32),
        shown_offsets=_offsets(sizes),
        pool=np.array(pool, np.int32),
        pools=np.array([n for numbers in pools.values() for n in numbers], np.int32),
        pool_offsets=_offsets(pool_sizes),
        queries=queries,
        shown_by="log" if any_shown else "most_popular",
    )


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """The composition of a preference list.

    Attributes:
      negatives: N, negatives in a list (the authors': 4).
      days: positives come from rows of the last so many days; None: from all rows.
      show, not_show, rand: shares of the negative levels. If a request has no (further) negative of
        the drawn level, the position goes to the next level in the cycle SHOW, NOT_SHOW, RAND whose
        share is not 0. It stays empty if no such level has one (`Lists.mix` gives the result).
      order, item_click, click: sampling weights of rows by level; with all 1, rows are drawn
        uniformly.
    """

    negatives: int = 4
    days: float | None = None
    show: float = 0.5
    not_show: float = 0.25
    rand: float = 0.25
    order: float = 1.0
    item_click: float = 1.0
    click: float = 1.0

    def __post_init__(self) -> None:
        if self.days is not None and not self.days > 0:
            raise UserError(f"ListConfig.days={self.days}: expected more than 0, or None.")
        if self.negatives < 1:
            raise UserError(f"ListConfig.negatives={self.negatives}: expected 1 or more.")
        for names in (NEGATIVE, POSITIVE):
            shares = {level.name.lower(): getattr(self, level.name.lower()) for level in names}
            if min(shares.values()) < 0 or not sum(shares.values()) > 0:
                raise UserError(
                    f"ListConfig: expected shares of at least 0, not all 0; found {shares}."
                )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """B preference lists; column 0 is the positive.

    Attributes:
      rows: int64 `[B]`, rows of the split.
      numbers: int32 `[B, 1 + N]`, query numbers; -1 at an empty position.
      levels: int8 `[B, 1 + N]`.
    """

    rows: np.ndarray
    numbers: np.ndarray
    levels: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Whether a position holds a query, `[B, 1 + N]`."""
        return self.numbers >= 0


class Lists:
    """Draws preference lists from the rows of a split.

    Raises:
      UserError: no row is usable: none has an indexed query of a level with a positive weight.
    """

    def __init__(self, behaviour: Behaviour, config: ListConfig, seed: int):
        self.behaviour, self.config, self.seed = behaviour, config, seed
        usable = behaviour.query >= 0
        if config.days is not None:
            latest = behaviour.time_ms.max(initial=0)
            usable &= behaviour.time_ms > latest - config.days * DAY_MS
        rows = {level: np.flatnonzero(usable & (behaviour.level == level)) for level in POSITIVE}
        weights = np.array([getattr(config, p.name.lower()) * len(rows[p]) for p in POSITIVE])
        if not weights.sum() > 0:
            usable_rows = ", ".join(f"{len(rows[p]):,} {p.name}" for p in POSITIVE)
            raise UserError(
                "no row can be the positive of a preference list: the rows with an indexed query "
                f"are {usable_rows}, and ListConfig gives these levels no weight."
            )
        self._rows = [rows[level] for level in POSITIVE]
        self._positive = np.cumsum(weights) / weights.sum()
        shares = np.array([getattr(config, level.name.lower()) for level in NEGATIVE])
        self._negative = np.cumsum(shares) / shares.sum()
        self._shares = shares / shares.sum()

    def __call__(self, step: int, size: int) -> Drawn:
        """The lists of batch `step`: rows drawn with replacement, weighted by level."""
        random = np.random.default_rng([self.seed, 1, step])
        levels = np.searchsorted(self._positive, random.random(size), side="right")
        quantiles = random.random(size)
        rows = np.empty(size, np.int64)
        for level, members in enumerate(self._rows):
            mask = levels == level
            rows[mask] = members[(quantiles[mask] * len(members)).astype(np.int64)]
        return self._fill(rows, random)

    def of(self, rows: np.ndarray) -> Drawn:
        """One list for each of the given rows; the same at every call."""
        return self._fill(np.asarray(rows, np.int64), np.random.default_rng([self.seed, 2]))

    def mix(self, lists: int = 4096) -> dict[str, tuple[float, float]]:
        """Negative level -> (configured share, drawn share) of the positions of so many lists, and
        "empty" -> (0, share of empty positions).
        """
        drawn = self(0, lists)
        mask, levels = drawn.mask[:, 1:], drawn.levels[:, 1:]
        shares = {
            level.name: (float(configured), float(np.mean(mask & (levels == level))))
            for level, configured in zip(NEGATIVE, self._shares, strict=True)
        }
        return {**shares, "empty": (0.0, float(np.mean(~mask)))}

    def _fill(self, rows: np.ndarray, random: np.random.Generator) -> Drawn:
        b, count = self.behaviour, self.config.negatives
        numbers = np.full((len(rows), 1 + count), -1, np.int32)
        levels = np.zeros((len(rows), 1 + count), np.int8)
        numbers[:, 0], levels[:, 0] = b.query[rows], b.level[rows]
        for column in range(1, 1 + count):
            drawn_kinds = np.searchsorted(self._negative, random.random(len(rows)), side="right")
            for attempt in range(len(NEGATIVE) * len(NEGATIVE) * _ATTEMPTS):
                # First the drawn level, then the two others, each with `_ATTEMPTS` draws.
                turn, kind = divmod(attempt // _ATTEMPTS, len(NEGATIVE))
                if not self._shares[kind]:
                    continue
                has_turn = (drawn_kinds + turn) % len(NEGATIVE) == kind
                empty = np.flatnonzero((numbers[:, column] < 0) & has_turn)
                if len(empty):
                    drawn = self._draw(kind, rows[empty], random)
                    invalid = (numbers[empty] == drawn[:, None]).any(axis=1) | (drawn < 0)
                    if kind:  # a shown query is neither NOT_SHOW nor RAND
                        invalid |= self._was_shown(rows[empty], drawn)
                    filled = empty[~invalid]
                    numbers[filled, column] = drawn[~invalid]
                    levels[filled, column] = NEGATIVE[kind]
        return Drawn(rows, numbers, levels)

    def _draw(self, kind: int, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One query of the level `NEGATIVE[kind]` for each row, -1 where there is none."""
        b = self.behaviour
        quantiles = random.random(len(rows))
        if NEGATIVE[kind] == Level.RAND:
            return (quantiles * b.queries).astype(np.int32)
        if NEGATIVE[kind] == Level.SHOW:
            return _pick(b.shown, b.shown_offsets, rows, quantiles)
        pool = b.pool[rows]
        picked = _pick(b.pools, b.pool_offsets, np.maximum(pool, 0), quantiles)
        return np.where(pool >= 0, picked, -1)

    def _was_shown(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        b = self.behaviour
        begin, end = b.shown_offsets[rows], b.shown_offsets[rows + 1]
        out = np.zeros(len(rows), bool)
        for i in range(int((end - begin).max(initial=0))):
            mask = begin + i < end
            out[mask] |= b.shown[begin[mask] + i] == numbers[mask]
        return out


def _pick(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, quantiles: np.ndarray):
    """The value at a quantile of each row's values, -1 for a row without values."""
    if not len(values):
        return np.full(len(rows), -1, np.int32)
    begin, size = offsets[rows], offsets[rows + 1] - offsets[rows]
    index = np.minimum(begin + (quantiles * size).astype(np.int64), len(values) - 1)
    return np.where(size > 0, values[index], -1)


def _contains(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each key is in the ascending `ordered`."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def summary(behaviour: Behaviour, counts: np.ndarray) -> dict:
    """Rows, (request, query) pairs of each level, and the source of the shown lists."""
    return {
        "rows": len(behaviour),
        "rows_of_unknown_queries": int(np.sum(behaviour.query < 0)),
        "shown_by": behaviour.shown_by,
        "queries": behaviour.queries,
        "pools": len(behaviour.pool_offsets) - 1,
        "pairs": {level.name.lower(): int(counts[level].sum()) for level in Level},
    }


def format_summary(summary: Mapping) -> str:
    """A summary as lines of text, with the limits of such a log."""
    pairs = summary["pairs"]
    counts = ", ".join(
        f"{pairs[level.name.lower()]:,} {level.name}" for level in [*POSITIVE, *NEGATIVE[:2]]
    )
    lines = [f"{summary['rows']:,} rows over {summary['queries']:,} queries: {counts}"]
    if summary["shown_by"] != "log":
        lines.append(
            "the log has no shown lists: SHOW stands for the "
            f"{_SHOWN_BY_POPULARITY} most popular completions of the prefix"
        )
    positive = [level for level in POSITIVE if pairs[level.name.lower()]]
    if not positive:
        lines.append("no row has an indexed query: this log gives no preference list")
    elif len(positive) == 1:
        lines.append(
            f"every row's level is {positive[0].name}: training prefers searched queries, but "
            "cannot prefer searches that lead to orders (that needs clicked_items and "
            "ordered_items)"
        )
    missing = [level.name for level in NEGATIVE[:2] if not pairs[level.name.lower()]]
    if missing:
        lines.append(
            f"no {' and no '.join(missing)} pairs: their positions in the lists go to RAND, whose "
            "queries are easy to distinguish and teach little"
        )
    return "\n".join(lines)
