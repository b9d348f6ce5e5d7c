"""Preference lists: one query a request led to, and N that it did not (PAPER.md section 4).

`Behaviour` holds what people did with every row of a log split, as query numbers: the query it
ended in and its level, what else was shown, and which pool of mined candidates its prefix has.
`Lists` draws from it: row, positive, negatives of three kinds. A draw is a function of (seed,
step), so training resumes without any stored state. Numpy only.
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

_ATTEMPTS = 12  # draws of a negative until it is one that the list may hold
_SHOWN_BY_POPULARITY = 10  # length of the list that a most-popular system would have shown
COLUMNS = ("prefix", "query", "shown", "clicked_items", "ordered_items", "timestamp_ms")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """R rows of a split over N indexed queries and P pools.

    Attributes:
      query: int32 `[R]`, the query a row ended in; -1: not indexed.
      level: int8 `[R]`, its level. time_ms: int64 `[R]`, when.
      shown, shown_offsets: what else the user saw: row r's are
        shown[shown_offsets[r]:shown_offsets[r + 1]], indexed queries other than the row's own.
      pool: int32 `[R]`, which pool the row's prefix has; -1: none.
      pools, pool_offsets: the pools' queries, laid out as `shown` is.
      queries: N.
      shown_by: "log", or "most_popular" where the log has no shown lists.
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
        """Into folder/split.npz."""
        with atomic_write(os.path.join(folder, f"{split}.npz")) as file:
            np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str, split: str) -> Behaviour:
        """As saved; UserError if it is not there."""
        path = os.path.join(folder, f"{split}.npz")
        require_files([path], "what people did with each row", "run the rewards stage first.")
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
        arrays["queries"], arrays["shown_by"] = int(arrays["queries"]), str(arrays["shown_by"])
        return cls(**arrays)

    def counts(self) -> np.ndarray:
        """How often each query was met at each level, int64 `[6, N]`.

        NOT_SHOW counts the requests whose pool held a query that was neither shown nor searched.
        RAND counts every search: a random query is drawn from all of them.
        """
        out = np.zeros((len(Level), self.queries), np.int64)
        indexed = self.query >= 0
        for level in POSITIVE:
            rows = indexed & (self.level == level)
            out[level] = np.bincount(self.query[rows], minlength=self.queries)
        out[Level.RAND] = np.bincount(self.query[indexed], minlength=self.queries)
        out[Level.SHOW] = np.bincount(self.shown, minlength=self.queries)
        # Pools times their requests, less what of them was shown or searched.
        visits = np.bincount(self.pool[self.pool >= 0], minlength=len(self.pool_offsets) - 1)
        pool_of = np.repeat(np.arange(len(visits)), np.diff(self.pool_offsets))
        pooled = np.bincount(self.pools, weights=visits[pool_of], minlength=self.queries)
        members = np.sort(pool_of * np.int64(self.queries) + self.pools)
        rows = np.repeat(np.arange(len(self)), np.diff(self.shown_offsets))
        for row_pool, query in ((self.pool[rows], self.shown), (self.pool, self.query)):
            there = (row_pool >= 0) & (query >= 0)
            row_pool, query = row_pool[there].astype(np.int64), query[there]
            there = _holds(members, row_pool * self.queries + query)
            pooled -= np.bincount(query[there], minlength=self.queries)
        out[Level.NOT_SHOW] = pooled.astype(np.int64)
        return out


def read_behaviour(
    blocks: Iterable[Mapping[str, Sequence]],
    find: Callable[[str], int],
    queries: int,
    pools: Mapping[str, Sequence[int]],
    popular: Callable[[str, int], Iterable[int]],
) -> Behaviour:
    """What people did, from the rows of a log split in order.

    Args:
      blocks: columns `COLUMNS` as lists, block by block.
      find: query -> its number, negative where it is not indexed (as mining left out what too few
        people searched).
      queries: how many are indexed.
      pools: prefix -> numbers of its mined candidates.
      popular: (prefix, k) -> numbers of its most popular completions, in place of `shown` where no
        row of the log has it.
    """
    names = {prefix: number for number, prefix in enumerate(pools)}
    typed: dict[str, int] = {}
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
            pool.append(names.get(prefix, -1))
            prefixes.append(typed.setdefault(prefix, len(typed)))
            any_shown = any_shown or bool(seen)
            others = [n for n in map(find, seen or ()) if n >= 0 and n != own]
            shown.extend(others)
            sizes.append(len(others))
    if not any_shown:
        listed = [list(popular(prefix, _SHOWN_BY_POPULARITY)) for prefix in typed]
        shown, sizes = array.array("i"), array.array("i")
        for prefix_number, own in zip(prefixes, query, strict=True):
            others = [n for n in listed[prefix_number] if n != own]
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
      negatives: N, negatives of a list (the authors': 4).
      days: lists are opened by rows of the last so many days only; None: by all.
      show, not_show, rand: shares of the negative levels. Where a request has no (further) negative
        of the level drawn, the place goes to the next one of SHOW, NOT_SHOW, RAND, SHOW whose share
        is not 0, and stays empty where no such level has one (`Lists.mix` has the resulting
        shares).
      order, item_click, click: how much likelier a row of that level is drawn than by chance; all
        1: as often as the log has them.
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
      numbers: int32 `[B, 1 + N]`, query numbers; -1 where a place is empty.
      levels: int8 `[B, 1 + N]`.
    """

    rows: np.ndarray
    numbers: np.ndarray
    levels: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Whether a place holds a query, `[B, 1 + N]`."""
        return self.numbers >= 0


class Lists:
    """Draws preference lists from the rows of a split.

    Raises:
      UserError: no row can open a list: none ended in an indexed query of a level asked for.
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
            there = ", ".join(f"{len(rows[p]):,} {p.name}" for p in POSITIVE)
            raise UserError(
                f"no row can open a preference list: the rows that ended in an indexed query are "
                f"{there}, and ListConfig asks for none of these levels."
            )
        self._rows = [rows[level] for level in POSITIVE]
        self._positive = np.cumsum(weights) / weights.sum()
        shares = np.array([getattr(config, level.name.lower()) for level in NEGATIVE])
        self._negative = np.cumsum(shares) / shares.sum()
        self._asked = shares / shares.sum()

    def __call__(self, step: int, size: int) -> Drawn:
        """The lists of batch `step`: rows drawn with replacement, weighted by level."""
        random = np.random.default_rng([self.seed, 1, step])
        level = np.searchsorted(self._positive, random.random(size), side="right")
        place = random.random(size)
        rows = np.empty(size, np.int64)
        for which, members in enumerate(self._rows):
            mine = level == which
            rows[mine] = members[(place[mine] * len(members)).astype(np.int64)]
        return self._fill(rows, random)

    def of(self, rows: np.ndarray) -> Drawn:
        """One list for each of the rows given; the same whenever it is asked for."""
        return self._fill(np.asarray(rows, np.int64), np.random.default_rng([self.seed, 2]))

    def mix(self, lists: int = 4096) -> dict[str, tuple[float, float]]:
        """Negative level -> (share asked for, share drawn) of the places of so many lists, and
        "empty" -> (0, share of places that hold no query).
        """
        drawn = self(0, lists)
        there, levels = drawn.mask[:, 1:], drawn.levels[:, 1:]
        shares = [float(np.mean(there & (levels == level))) for level in NEGATIVE]
        names = [level.name for level in NEGATIVE]
        asked = self._asked.tolist()
        found = dict(zip(names, zip(asked, shares, strict=True), strict=True))
        return {**found, "empty": (0.0, float(np.mean(~there)))}

    def _fill(self, rows: np.ndarray, random: np.random.Generator) -> Drawn:
        b, count = self.behaviour, self.config.negatives
        numbers = np.full((len(rows), 1 + count), -1, np.int32)
        levels = np.zeros((len(rows), 1 + count), np.int8)
        numbers[:, 0], levels[:, 0] = b.query[rows], b.level[rows]
        for column in range(1, 1 + count):
            wanted = np.searchsorted(self._negative, random.random(len(rows)), side="right")
            for attempt in range(len(NEGATIVE) * len(NEGATIVE) * _ATTEMPTS):
                # The level wanted, then the two others; a few draws of each.
                turn, kind = divmod(attempt // _ATTEMPTS, len(NEGATIVE))
                if not self._asked[kind]:
                    continue
                its_turn = (wanted + turn) % len(NEGATIVE) == kind
                open_ = np.flatnonzero((numbers[:, column] < 0) & its_turn)
                if len(open_):
                    found = self._candidates(kind, rows[open_], random)
                    taken = (numbers[open_] == found[:, None]).any(axis=1) | (found < 0)
                    if kind:  # what was shown is neither NOT_SHOW nor RAND
                        taken |= self._was_shown(rows[open_], found)
                    fits = open_[~taken]
                    numbers[fits, column] = found[~taken]
                    levels[fits, column] = NEGATIVE[kind]
        return Drawn(rows, numbers, levels)

    def _candidates(self, kind: int, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One query of a negative level for each row, -1 where there is none."""
        b = self.behaviour
        place = random.random(len(rows))
        if NEGATIVE[kind] == Level.RAND:
            return (place * b.queries).astype(np.int32)
        if NEGATIVE[kind] == Level.SHOW:
            return _pick(b.shown, b.shown_offsets, rows, place)
        pool = b.pool[rows]
        found = _pick(b.pools, b.pool_offsets, np.maximum(pool, 0), place)
        return np.where(pool >= 0, found, -1)

    def _was_shown(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        b = self.behaviour
        begin, end = b.shown_offsets[rows], b.shown_offsets[rows + 1]
        out = np.zeros(len(rows), bool)
        for i in range(int((end - begin).max(initial=0))):
            there = begin + i < end
            out[there] |= b.shown[begin[there] + i] == numbers[there]
        return out


def _pick(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, place: np.ndarray):
    """The value at share `place` of each row's values, -1 for a row without any."""
    if not len(values):
        return np.full(len(rows), -1, np.int32)
    begin, size = offsets[rows], offsets[rows + 1] - offsets[rows]
    at = np.minimum(begin + (place * size).astype(np.int64), len(values) - 1)
    return np.where(size > 0, values[at], -1)


def _holds(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each key is among the ascending `ordered`."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def summary(behaviour: Behaviour, counts: np.ndarray) -> dict:
    """Rows, (request, query) pairs of each level, and where the shown lists come from."""
    return {
        "rows": len(behaviour),
        "rows_of_unknown_queries": int(np.sum(behaviour.query < 0)),
        "shown_by": behaviour.shown_by,
        "queries": behaviour.queries,
        "pools": len(behaviour.pool_offsets) - 1,
        "pairs": {level.name.lower(): int(counts[level].sum()) for level in Level},
    }


def format_summary(summary: Mapping) -> str:
    """A summary as lines of text: its contents, and what cannot be learnt from such a log."""
    pairs = summary["pairs"]
    counted = ", ".join(
        f"{pairs[level.name.lower()]:,} {level.name}" for level in [*POSITIVE, *NEGATIVE[:2]]
    )
    lines = [f"{summary['rows']:,} rows over {summary['queries']:,} queries: {counted}"]
    if summary["shown_by"] != "log":
        lines.append(
            f"the log has no shown lists: SHOW is what the {_SHOWN_BY_POPULARITY} most popular "
            "completions would have been"
        )
    positive = [level for level in POSITIVE if pairs[level.name.lower()]]
    if not positive:
        lines.append("no row ended in an indexed query: no preference list can be made of this log")
    elif len(positive) == 1:
        lines.append(
            f"every row's level is {positive[0].name}: lists teach what is searched rather than "
            "passed over, but not which searches lead to orders (give clicked_items and "
            "ordered_items for that)"
        )
    missing = [level.name for level in NEGATIVE[:2] if not pairs[level.name.lower()]]
    if missing:
        lines.append(
            f"no {' and no '.join(missing)} pairs: their places in the lists go to RAND, which is "
            "easily distinguished and teaches little"
        )
    return "\n".join(lines)
