"""Semantic ids of all indexed queries as arrays, with a look-up by the first codes of an id.

PAPER.md section 2.4. `quantize` makes the ids, `collisions` separates queries that share one, and
the prefix index finds related queries with them. Numpy only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_write, read_json, require_files, write_json

IDS, ORDER, KEYS, ABOUT = "ids.npy", "order.npy", "keys.npy", "ids.json"


class SemanticIds:
    """The ids of N queries, query number i in byte order.

    Attributes:
      ids: [N, levels] uint16.
      order: [N] uint32, query numbers by id, most searched first inside an id.
      keys: [N] uint64, the ids in that order, each packed into one number.
      codes: codes a level.
    """

    def __init__(self, ids: np.ndarray, order: np.ndarray, keys: np.ndarray, codes: int):
        self.ids, self.order, self.keys, self.codes = ids, order, keys, codes
        self._bits = bits_of(codes, ids.shape[1])

    @classmethod
    def build(cls, ids: np.ndarray, counts: np.ndarray, codes: int) -> SemanticIds:
        """From ids [N, levels] and search counts [N]; queries of equal counts by number.

        Raises:
          UserError: unequal lengths, codes out of range, or ids that do not fit 64 bits.
        """
        ids = np.ascontiguousarray(ids, np.uint16)
        if ids.ndim != 2 or len(ids) != len(counts):
            raise UserError(
                f"ids {list(ids.shape)} and {len(counts)} counts: expected [N, levels] and N "
                "counts; give both for the same queries."
            )
        if ids.size and ids.max() >= codes:
            row = int(np.argmax(ids.max(1) >= codes))
            raise UserError(
                f"id of query {row} is {ids[row].tolist()}: expected codes below {codes}; make "
                "the ids again with this quantiser."
            )
        keys = pack(ids, codes)
        order = np.lexsort((-np.asarray(counts, np.int64), keys)).astype(np.uint32)
        return cls(ids, order, keys[order], codes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def levels(self) -> int:
        """Number of codes of an id."""
        return self.ids.shape[1]

    def of(self, number: int) -> tuple[int, ...]:
        """The id of query `number`."""
        return tuple(self.ids[number].tolist())

    def numbers(self, beginning: Sequence[int]) -> np.ndarray:
        """Numbers [n] of the queries whose ids start with `beginning`; () gives all queries.

        They are in the order of ids, and most searched first inside an id.

        Raises:
          UserError: more codes than levels, or a code out of range.
        """
        beginning = [int(code) for code in beginning]
        if len(beginning) > self.levels or any(not 0 <= c < self.codes for c in beginning):
            raise UserError(
                f"id {tuple(beginning)}: expected at most {self.levels} codes from 0 to "
                f"{self.codes - 1}; use an id of this quantiser."
            )
        first = 0
        for code in beginning:
            first = first << self._bits | code
        rest = self._bits * (self.levels - len(beginning))
        first <<= rest
        last = first | ((1 << rest) - 1)
        start = np.searchsorted(self.keys, np.uint64(first), side="left")
        stop = np.searchsorted(self.keys, np.uint64(last), side="right")
        return self.order[start:stop]

    def collisions(self) -> float:
        """Share of the queries that share their full id with another query."""
        if not len(self):
            return 0.0
        same = np.asarray(self.keys[1:] == self.keys[:-1])
        shared = np.zeros(len(self), bool)
        shared[1:] |= same
        shared[:-1] |= same
        return float(shared.mean())

    def save(self, folder: str) -> None:
        """Write the three arrays and ids.json into `folder`."""
        for name, array in ((IDS, self.ids), (ORDER, self.order), (KEYS, self.keys)):
            with atomic_write(os.path.join(folder, name)) as file:
                np.save(file, array)
        about = {"queries": len(self), "levels": self.levels, "codes": self.codes}
        write_json(os.path.join(folder, ABOUT), about, indent=1)

    @classmethod
    def load(cls, folder: str) -> SemanticIds:
        """Open saved ids by memory map; UserError if files are missing or inconsistent."""
        paths = [os.path.join(folder, name) for name in (IDS, ORDER, KEYS, ABOUT)]
        require_files(paths, "saved semantic ids", "make them again")
        try:
            about = read_json(paths[3], "saved semantic ids", "make them again")
            arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths[:3]]
            n, levels, codes = about["queries"], about["levels"], about["codes"]
            shapes = [array.shape for array in arrays]
            if shapes != [(n, levels), (n,), (n,)]:
                raise ValueError(f"{ABOUT} has {n} queries, the arrays have shapes {shapes}")
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            check_refused(folder, error)
            raise UserError(
                f"{folder}: the semantic ids are damaged ({error}); make them again"
            ) from error
        ids, order, keys = arrays
        return cls(ids, order, keys, codes)


def level_usage(ids: np.ndarray, codes: int) -> list[dict[str, float]]:
    """For each level of ids [N, levels]: number and share of used codes, and their perplexity."""
    rows = []
    for level in range(ids.shape[1]):
        counts = np.bincount(ids[:, level], minlength=codes)
        share = counts[counts > 0] / len(ids)
        perplexity = float(np.exp(-(share * np.log(share)).sum()))
        rows.append({"used": len(share), "usage": len(share) / codes, "perplexity": perplexity})
    return rows


def bits_of(codes: int, levels: int) -> int:
    """Bits of a code in a packed id.

    Raises:
      UserError: an id does not fit 64 bits.
    """
    bits = max(1, int(codes - 1).bit_length())
    if bits * levels > 64:
        raise UserError(
            f"{levels} levels of {codes} codes need {bits * levels} bits: an id must fit 64; "
            "choose fewer levels or codes."
        )
    return bits


def pack(ids: np.ndarray, codes: int) -> np.ndarray:
    """Ids [N, levels] -> [N] uint64 that sort like the ids: the first level has the highest bits.

    Raises:
      UserError: an id does not fit 64 bits.
    """
    keys, bits = np.zeros(len(ids), np.uint64), np.uint64(bits_of(codes, ids.shape[1]))
    for level in range(ids.shape[1]):
        keys = keys << bits | ids[:, level].astype(np.uint64)
    return keys
