"""Sorted texts as one block of UTF-8 with offsets: row number to text and back, by memory map.

The known queries and prefixes of the index (PAPER.md section 2). Byte order is code point order, so
a text is found by bisection. It only stores and finds; what the texts mean is the index's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from onesug_jax.errors import UserError


class Texts(Sequence):
    """Distinct texts in byte order.

    Attributes:
      block: [bytes] uint8, every text followed by a line end.
      offsets: [N + 1] int64, text i begins at offsets[i].
    """

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self.block, self.offsets = block, offsets
        self._bytes, self._offsets = memoryview(block), memoryview(offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError("text number out of range")
        return self._encoded(index).decode("utf-8", "surrogatepass")

    def _encoded(self, index: int) -> bytes:
        return bytes(self._bytes[self._offsets[index] : self._offsets[index + 1] - 1])

    def find(self, text: str) -> int:
        """The number of `text`, or -1 if it is not here."""
        key = _encode(text)
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._encoded(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._encoded(low) == key else -1

    @classmethod
    def write(cls, path: str | Path, texts: Iterable[str], what: str) -> np.ndarray:
        """Write `path`.txt and `path`.npy, text by text; return the rows that were kept.

        A text that comes again right after itself is kept once, its first row.

        Args:
          path: of both files, without the suffix.
          texts: in byte order.
          what: "queries", for messages.

        Returns:
          [N] int64, row numbers in `texts` of the N kept.

        Raises:
          UserError: the texts are out of order, or one holds a line end.
        """
        kept, lengths, before = [], [0], None
        with open(f"{path}.txt", "wb") as file:
            for row, text in enumerate(texts):
                encoded = _encode(text)
                if b"\n" in encoded:
                    raise UserError(
                        f"{what}, row {row}: expected one line of text, found {text!r}. Ingest the "
                        "log again, which cleans texts."
                    )
                if before is not None and encoded <= before:
                    if encoded == before:
                        continue
                    raise UserError(
                        f"{what}, row {row}: expected byte order, found {text!r} after "
                        f"{before.decode('utf-8', 'surrogatepass')!r}. Sort them (and the rows "
                        "that belong to them) by their UTF-8 bytes."
                    )
                file.write(encoded + b"\n")
                kept.append(row)
                lengths.append(len(encoded) + 1)
                before = encoded
        np.save(f"{path}.npy", np.cumsum(lengths, dtype=np.int64))
        return np.array(kept, np.int64)

    @classmethod
    def load(cls, path: str | Path) -> Texts:
        """Open what `write` made, by memory map.

        Raises:
          ValueError, OSError: the files are missing or damaged; the caller knows what to advise.
        """
        offsets = np.load(f"{path}.npy", mmap_mode="r", allow_pickle=False)
        size = os.path.getsize(f"{path}.txt")
        if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets):
            raise ValueError(f"{path}.npy holds no offsets")
        if int(offsets[-1]) != size:
            raise ValueError(f"{path}.txt has {size} bytes where {int(offsets[-1])} are expected")
        block = np.memmap(f"{path}.txt", np.uint8, "r") if size else np.zeros(0, np.uint8)
        return cls(block.view(np.ndarray), offsets.view(np.ndarray))


def _encode(text: str) -> bytes:
    # Half a surrogate pair can arrive in a prefix by JSON; it is found nowhere, and must not raise.
    return text.encode("utf-8", "surrogatepass")
