"""The constraint of queries that are written freely: a query starts with the prefix.

The state of a beam is the number of prefix bytes that it has written. The next piece must be the
beginning of the remaining prefix, or start with it. After the prefix, every text piece may follow.
`Pieces` finds the allowed pieces on the host; `Begun` is the constraint on the device.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.trie import Continuations, _best_of


@flax.struct.dataclass
class Begun:
    """The constraint of B requests whose prefixes have at most P bytes (see `trie.Constraint`).

    Attributes:
      allowed: `[B, P + 1, V]` booleans, the pieces that may follow after so many bytes.
      typed: `[B]` bytes of each prefix; sizes: `[V]` bytes of each piece.
    """

    allowed: jax.Array
    typed: jax.Array
    sizes: jax.Array

    BY_ROW: ClassVar[tuple[str, ...]] = ("allowed", "typed")

    def start(self, batch: int) -> jax.Array:
        """See `Constraint.start`."""
        return jnp.zeros((batch, 1), jnp.int32)

    def best(self, state, scores, before, k, first):
        """See `Constraint.best`."""
        del first
        allowed = jax.vmap(lambda rows, picks: rows[picks])(self.allowed, state)
        totals = scores.vocabulary + (before - scores.log_partition())[..., None]
        totals = jnp.where(allowed & (before > NEG_INF / 2)[..., None], totals, NEG_INF)
        totals, parent, token = _best_of(totals, k)
        written = jnp.take_along_axis(state, parent, axis=1) + self.sizes[token]
        return Continuations(totals, parent, token, jnp.minimum(written, self.typed[:, None]))


class Pieces:
    """Finds the pieces that may follow within a prefix.

    Args:
      texts: the bytes of each of the V ids, b"" for ids without text (`Vocabulary.piece_bytes`).
        A query starts with a space.
      end_id: the token that ends a query.
    """

    def __init__(self, texts: Sequence[bytes], end_id: int):
        self._sizes = np.array([len(text) for text in texts], np.int32)
        order = sorted(np.flatnonzero(self._sizes).tolist(), key=lambda i: texts[i])
        self._ids, self._sorted = np.array(order, np.int32), [texts[i] for i in order]
        self._free = self._sizes > 0
        self._free[end_id] = True

    def begun(self, prefixes: Sequence[str], size: int, longest: int) -> Begun:
        """The constraint of these prefixes, padded to a batch of `size`.

        Only the first `longest` bytes of a prefix, its leading space included, are enforced.
        """
        allowed = np.zeros((size, longest + 1, len(self._free)), bool)
        typed = np.zeros(size, np.int32)
        for row, prefix in enumerate([*prefixes, *[prefixes[0]] * (size - len(prefixes))]):
            text = (b" " + prefix.encode("utf-8", "replace"))[:longest]
            typed[row] = len(text)
            for at in range(len(text)):
                allowed[row, at, self._following(text[at:])] = True
            allowed[row, len(text)] = self._free
        return Begun(jnp.asarray(allowed), jnp.asarray(typed), jnp.asarray(self._sizes))

    def _following(self, rest: bytes) -> np.ndarray:
        """Ids of the pieces that `rest` begins with, and of those that begin with `rest`."""
        low = bisect.bisect_left(self._sorted, rest)
        high = bisect.bisect_right(self._sorted, rest, lo=low, key=lambda t: t[: len(rest)])
        within: list[int] = []
        for end in range(1, len(rest)):
            first = bisect.bisect_left(self._sorted, rest[:end])
            last = bisect.bisect_right(self._sorted, rest[:end])
            within += range(first, last)
        return self._ids[[*within, *range(low, high)]]
