"""What an adapter is: the bridge from one kind of foreign log to rows of the schema.

An adapter says whether a file is one of its own, what columns it needs of which kind, and turns
chunks of them into rows. What a foreign log does not record is filled by a documented rule, seeded
where it is drawn. Nothing is normalised or checked here beyond types: `schema.validate` does that
for all adapters.
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
    """What a chunk gives: rows with LOG_SCHEMA's types, each from row `origin[i]` of the chunk.

    `faults` names rows of the chunk that give no log row; `splits` (0 train, 1 dev, 2 test, int8)
    is set where the log itself says which split a row belongs to. `joined` counts rows of the chunk
    that became part of another row; `units` counts times by the unit they were converted from.
    """

    table: pa.Table
    origin: np.ndarray
    faults: dict[int, str]
    splits: np.ndarray | None = None
    joined: int = 0
    units: collections.Counter[str] = field(default_factory=collections.Counter)


class Adapter(abc.ABC):
    """One kind of log; subclasses set `name`, `kinds` (column -> kind) and write `convert`."""

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
        """Whether the file is a table beside the log (users, items) that holds no requests."""
        return False

    def load_sides(self, sources: Sequence[Source]) -> int:
        """Read the tables beside the log, before any rows; the number of lines not readable."""
        return 0

    def needs(self, source: Source) -> dict[str, str]:
        """Columns this adapter reads from the file, each with its kind (see `columns.KINDS`)."""
        return self.kinds

    def check(self, source: Source) -> None:
        """Look at names and types before reading.

        Raises:
          UserError: a column is missing or has a type that cannot be what the adapter needs.
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
                    f"{expected} there); found: {', '.join(source.columns)}. {fix}"
                    + (", null or an empty list where unknown." if kind in _MAY_BE_NULL else ".")
                )
            if found is not None and not accepts(found):
                raise UserError(
                    f"{source.path}: column {name!r} should hold {expected}; found {found}. "
                    + _FIXES.get(kind, f"Write it as {expected}.")
                )

    def chunks(self, source: Source) -> Iterator[Chunk]:
        """The file in chunks, as `convert` takes them."""
        return read_chunks(source, only=[*self.needs(source), *self.optional])

    @abc.abstractmethod
    def convert(self, chunk: Chunk) -> Rows:
        """Rows of the schema from a chunk whose file passed `check`."""


def folded(name: str) -> str:
    """A column's name without case, surrounding white space and character width."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that was probably meant by `name`."""
    by_fold = {folded(one): one for one in names}
    near = difflib.get_close_matches(folded(name), by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def check_distinct(path: str, names: Iterable[str], existing: Iterable[str] = ()) -> None:
    """Refuse names that differ only by case or white space from an existing one or from each other.

    Raises:
      UserError: names both, and the way out.
    """
    seen = {folded(name): name for name in existing}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise UserError(
                f"{path}: expected column names that differ by more than case; found {name!r} "
                f"beside {other!r}. Rename one of them, or name the profile columns to take "
                "(--gin.ingest.profile=['gender','age'])."
            )


class ChunkReader:
    """Converts one chunk's columns by name and gathers the rows that do not fit."""

    def __init__(self, chunk: Chunk):
        """Begin with no faults."""
        self.chunk = chunk
        self.count = len(chunk.rows)
        self.faults: dict[int, str] = {}
        self.units: collections.Counter[str] = collections.Counter()

    def __call__(self, convert: Callable[[Column, str], Converted], name: str) -> pa.Array:
        """Column `name` by `convert`, nulls where the chunk lacks it or a value does not fit."""
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
    """All columns of LOG_SCHEMA in its order (null where the log is silent), then the others."""
    full = {f.name: table.get(f.name, pa.nulls(count, f.type)) for f in LOG_SCHEMA}
    full["clicked_position"] = _int32(full["clicked_position"])
    return {**full, **{name: column for name, column in table.items() if name not in full}}


def _int32(values: pa.Array) -> pa.Array:
    """Positions as int32; what does not fit is certainly outside any list, and stays so as -1."""
    if values.type == pa.int32():
        return values
    numbers = values.fill_null(0).to_numpy()
    fits = (numbers >= 0) & (numbers < 2**31)
    null = values.is_null().to_numpy(zero_copy_only=False)
    return pa.array(np.where(fits, numbers, -1).astype(np.int32), mask=null)


def draw(seed: int, key: str, n: int) -> int:
    """A number in 0..n-1 that depends on (seed, key) alone, the same on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little") % n
