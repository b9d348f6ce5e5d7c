"""The base of all adapters. An adapter converts one kind of foreign log to rows of the schema.

It recognises its files by their columns, declares the columns it needs, and converts chunks of
them. Values that a foreign log does not record follow a documented rule; random ones have a seed.
Adapters check types only: `schema.validate` normalises and checks the rows of all of them.
"""

from __future__ import annotations

import abc
import collections
import difflib
import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from onesug_jax.errors import UserError
from onesug_jax.logs.columns import KINDS, Column, Converted
from onesug_jax.logs.readers import Chunk, Source, read_chunks
from onesug_jax.logs.schema import LOG_SCHEMA

_MAY_BE_NULL = ("texts", "ids", "number")
_FIXES = {
    "millis": "Cast it to int64 milliseconds since 1970, or to a timestamp type.",
    "scalar": "Leave it out: name the profile columns to use with ingest.profile.",
}


@dataclass
class Rows:
    """A converted chunk: rows with the types of LOG_SCHEMA; row i is from row `origin[i]` of it.

    `faults`: the rows of the chunk that could not be converted, with their reasons. `splits` (0
    train, 1 dev, 2 test, int8): set if the log itself assigns rows to splits. `joined`: the number
    of chunk rows that became part of another row. `units`: the number of times converted from each
    unit.
    """

    table: pa.Table
    origin: np.ndarray
    faults: dict[int, str]
    splits: np.ndarray | None = None
    joined: int = 0
    units: collections.Counter[str] = field(default_factory=collections.Counter)


class Adapter(abc.ABC):
    """One kind of log; subclasses define `name`, `kinds` (column -> kind) and `convert`."""

    name = ""
    kinds: dict[str, str] = {}
    optional: dict[str, str] = {}
    dated = True  # its times are true dates; else only an order

    def owns(self, columns: Collection[str]) -> bool:
        """Whether a file with these columns is of this kind, for adapter="auto"."""
        return set(self.kinds) <= set(columns)

    def columns(self) -> set[str]:
        """Names of all columns that this adapter reads, required and optional."""
        return {*self.kinds, *self.optional}

    def is_side(self, columns: Collection[str]) -> bool:
        """Whether the file is a side table (users, items) without requests."""
        return False

    def load_sides(self, sources: Sequence[Source]) -> int:
        """Read the side tables before any rows; returns the number of unreadable lines."""
        return 0

    def needs(self, source: Source) -> dict[str, str]:
        """The columns required of the file, each with its kind (see `columns.KINDS`)."""
        return self.kinds

    def check(self, source: Source) -> None:
        """Check the names and types of the columns before reading.

        Raises:
          UserError: a column is missing or has a wrong type.
        """
        needed = self.needs(source)
        for name, kind in {**needed, **self.optional}.items():
            accepts, expected = KINDS[kind]
            found = source.columns.get(name)
            if name not in source.columns and name in needed:
                near = nearest(name, [one for one in source.columns if one not in self.columns()])
                fix = f"Rename column {near!r} to {name!r}" if near else f"Add column {name!r}"
                raise UserError(
                    f"{source.path}: column {name!r} is missing (adapter {self.name!r} expects "
                    f"{expected}); found: {', '.join(source.columns)}. {fix}"
                    + (", null or an empty list where unknown." if kind in _MAY_BE_NULL else ".")
                )
            if found is not None and not accepts(found):
                raise UserError(
                    f"{source.path}: column {name!r} should hold {expected}; found {found}. "
                    + _FIXES.get(kind, f"Write it as {expected}.")
                )

    def chunks(self, source: Source) -> Iterator[Chunk]:
        """The file in chunks for `convert`."""
        return read_chunks(source, only=[*self.needs(source), *self.optional])

    @abc.abstractmethod
    def convert(self, chunk: Chunk) -> Rows:
        """Rows of the schema from a chunk whose file passed `check`."""


def folded(name: str) -> str:
    """A column's name without case, surrounding white space and character width."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`; None if none is similar."""
    by_fold = {folded(one): one for one in names}
    near = difflib.get_close_matches(folded(name), by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def check_distinct(path: str, names: Iterable[str], existing: Iterable[str] = ()) -> None:
    """Refuse names that differ only by case or white space from an existing one or from each other.

    Raises:
      UserError: two names are that similar.
    """
    seen = {folded(name): name for name in existing}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise UserError(
                f"{path}: expected column names that differ by more than case; found {name!r} "
                f"beside {other!r}. Rename one of them, or name the profile columns to use "
                "(--gin.ingest.profile=['gender','age'])."
            )


class ChunkReader:
    """Converts the columns of one chunk by name and collects the faulty rows."""

    def __init__(self, chunk: Chunk):
        self.chunk = chunk
        self.count = len(chunk.rows)
        self.faults: dict[int, str] = {}
        self.units: collections.Counter[str] = collections.Counter()

    def __call__(self, convert: Callable[[Column, str], Converted], name: str) -> pa.Array:
        """Column `name` by `convert`, null where the chunk lacks it or a value is faulty."""
        column = self.chunk.columns.get(name)
        values, faults = convert([None] * self.count if column is None else column, name)
        for row, reason in faults.items():
            self.faults.setdefault(row, reason)
        return values

    def rows(self, table: dict[str, pa.Array], splits: np.ndarray | None = None) -> Rows:
        """One log row per row of the chunk, without the faulty ones."""
        full = pa.table(_complete(table, self.count))
        good = np.setdiff1d(
            np.arange(self.count), np.fromiter(self.faults, np.int64, len(self.faults))
        )
        if self.faults:
            full = full.take(pa.array(good))
            splits = None if splits is None else splits[good]
        return Rows(full, good, self.faults, splits, units=self.units)


def _complete(table: dict[str, pa.Array], count: int) -> dict[str, pa.Array]:
    """All columns of LOG_SCHEMA in its order (null where the log has none), then the others."""
    full = {f.name: table.get(f.name, pa.nulls(count, f.type)) for f in LOG_SCHEMA}
    full["clicked_position"] = _int32(full["clicked_position"])
    return {**full, **{name: column for name, column in table.items() if name not in full}}


def _int32(values: pa.Array) -> pa.Array:
    """Positions as int32; those out of its range are outside any list and become -1."""
    if values.type == pa.int32():
        return values
    numbers = values.fill_null(0).to_numpy()
    fits = (numbers >= 0) & (numbers < 2**31)
    null = values.is_null().to_numpy(zero_copy_only=False)
    return pa.array(np.where(fits, numbers, -1).astype(np.int32), mask=null)


def draw(seed: int, key: str, n: int) -> int:
    """A random number in 0..n-1 that depends on (seed, key) alone, on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little") % n
