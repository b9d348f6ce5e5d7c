"""Sorted texts as one block of UTF-8 with offsets: number to text and back, by memory map.

They are the queries of `completion`, and the queries and prefixes of the prefix index (PAPER.md
section 2). Byte order is code point order, so bisection finds a text.
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from onesug_jax.errors import UserError

_START = 8  # bytes at the start of a text that are compared as one number


class Texts(Sequence):
    """Distinct texts in byte order. Loaded texts are pickled as the paths of their files.

    Attributes:
      block: [bytes] uint8, every text followed by a line end.
      offsets: [N + 1] int64, text i begins at offsets[i].
    """

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self.block, self.offsets = block, offsets
        self._encoded = _Encoded(block, offsets)
        self._paths: tuple[str, str] | None = None

    def __reduce__(self):
        if self._paths is None:
            return Texts, (self.block, self.offsets)
        return Texts.load, self._paths

    @functools.cached_property
    def _starts(self) -> memoryview:
        """The first eight bytes of every text as a number, which compares much faster."""
        begins, lengths = self.offsets[:-1], np.diff(self.offsets) - 1
        numbers = np.zeros(len(self), np.uint64)
        for place in range(_START):
            rows = np.flatnonzero(lengths > place)
            byte = self.block[begins[rows] + place].astype(np.uint64)
            numbers[rows] |= byte << np.uint64(8 * (_START - 1 - place))
        return numbers.data

    @classmethod
    def of(cls, encoded: Sequence[bytes]) -> Texts:
        """Texts in memory, from distinct sorted outputs of `encode` without line ends."""
        block = np.frombuffer(b"".join(text + b"\n" for text in encoded), np.uint8)
        lengths = np.fromiter((len(text) + 1 for text in encoded), np.int64, len(encoded))
        return cls(block, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError("text number out of range")
        return self._encoded[index].decode("utf-8", "surrogatepass")

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # not hashable

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"

    def first(self, key: bytes, start: int = 0) -> int:
        """The smallest number, from `start` on, of a text >= `key`; N if there is none."""
        number = int.from_bytes(key[:_START].ljust(_START, b"\0"), "big")
        start = bisect_left(self._starts, number, start)
        return bisect_left(self._encoded, key, start, bisect_right(self._starts, number, start))

    def range(self, prefix: str) -> tuple[int, int]:
        """First and one-past-last number of the texts that start with `prefix`."""
        key = encode(prefix)
        if not key:
            return 0, len(self)
        first = self.first(key)
        return first, self._end(key, first)

    def _end(self, key: bytes, first: int) -> int:
        """One past the last number of the texts that start with `key`; none is below `first`."""
        # No UTF-8 byte is 0xFF, so the last byte plus one is the exact upper bound.
        return self.first(key[:-1] + bytes([key[-1] + 1]), first)

    def following(self, prefix: str) -> Iterator[str]:
        """The characters that follow `prefix` in the texts that start with it, each once."""
        first, last = self.range(prefix)
        while first < last:
            text = self[first]
            if text == prefix:
                first += 1
            else:
                yield text[len(prefix)]
                first = self._end(encode(text[: len(prefix) + 1]), first)

    def starts(self, prefix: str) -> bool:
        """Whether any text starts with `prefix` (a text starts with itself)."""
        key = encode(prefix)
        first = self.first(key)
        return first < len(self) and self._encoded[first].startswith(key)

    def find(self, text: str) -> int:
        """The number of `text`, or -1 if it is absent."""
        key = encode(text)
        at = self.first(key)
        return at if at < len(self) and self._encoded[at] == key else -1

    def save(self, text_path: str, offsets_path: str) -> None:
        """Write the texts, one a line, and their offsets."""
        with open(text_path, "wb") as file:
            file.write(self.block.data)
        np.save(offsets_path, self.offsets)

    @staticmethod
    def write(text_path: str, offsets_path: str, texts: Iterable[str], name: str) -> None:
        """Write texts for `load`, one after another, without holding them in memory.

        Args:
          text_path, offsets_path: the two files.
          texts: in byte order, each once.
          name: "queries", for messages.

        Raises:
          UserError: the texts are out of order, or one holds a line end.
        """
        lengths, before = [0], None
        with open(text_path, "wb") as file:
            for row, text in enumerate(texts):
                encoded = encode(text)
                if b"\n" in encoded:
                    raise UserError(
                        f"{name}, row {row}: expected one line of text, found {text!r}. Ingest the "
                        "log again, which cleans texts."
                    )
                if before is not None and encoded <= before:
                    raise UserError(
                        f"{name}, row {row}: expected byte order, each text once; found {text!r} "
                        f"after {before.decode('utf-8', 'surrogatepass')!r}. Sort them (and the "
                        "rows that belong to them) by their UTF-8 bytes."
                    )
                file.write(encoded + b"\n")
                lengths.append(len(encoded) + 1)
                before = encoded
        np.save(offsets_path, np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def load(cls, text_path: str, offsets_path: str) -> Texts:
        """Open the files of `save` or `write` by memory map.

        Raises:
          ValueError, OSError, EOFError: the files are missing or damaged.
        """
        offsets = np.load(offsets_path, mmap_mode="r", allow_pickle=False)
        size = os.path.getsize(text_path)
        if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets):
            raise ValueError(f"{offsets_path} holds no offsets")
        if int(offsets[-1]) != size:
            raise ValueError(f"{text_path} has {size} bytes where {int(offsets[-1])} are expected")
        block = np.memmap(text_path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        texts = cls(block.view(np.ndarray), offsets.view(np.ndarray))
        texts._paths = os.path.abspath(text_path), os.path.abspath(offsets_path)
        return texts


class _Encoded:
    """The texts as a sequence of bytes for `bisect`; slices of memoryviews are the fastest."""

    __slots__ = ("_bytes", "_offsets")

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self._bytes, self._offsets = block.data, offsets.data

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._bytes[self._offsets[index] : self._offsets[index + 1] - 1])


def encode(text: str) -> bytes:
    """UTF-8, also of half a surrogate pair, which JSON allows in a prefix: it matches no text and
    must not raise.
    """
    return text.encode("utf-8", "surrogatepass")
