"""Vectors of texts, reusing those that an earlier version stored with the same encoder.

An update mines the texts of a month again, and the version in use has vectors of nearly all of
them. Only new texts are encoded. A full rebuild would give the same bits
(`TextEncoder.encode(whole_batches=True)`; on another kind of device, up to rounding).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from onesug_jax.text_encoder.encoder import TextEncoder

_BLOCK = 16_384  # texts encoded, or vectors copied, at a time


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Distinct texts [N] of Arrow, and their vectors [N, D] in the same order.

    Attributes:
      encoder: the fingerprint of the text encoder that made the vectors.
    """

    texts: pa.Array
    vectors: np.ndarray
    encoder: str


def encode_new(
    texts: pa.Array, encoder: TextEncoder, out: np.ndarray, stored: Encoded | None = None
) -> int:
    """Writes the vectors of `texts` [N] to `out` [N, D]; returns the number of encoded texts.

    Args:
      out: of the dtype of the stored vectors.
      stored: vectors to reuse; ignored if another encoder made them.
    """
    numbers = np.full(len(texts), -1, np.int64)
    if stored is not None and stored.encoder == encoder.fingerprint:
        numbers = pc.fill_null(pc.index_in(texts, value_set=stored.texts), -1).to_numpy()
    old, new = np.flatnonzero(numbers >= 0), np.flatnonzero(numbers < 0)
    for start in range(0, len(old), _BLOCK):
        rows = old[start : start + _BLOCK]
        out[rows] = stored.vectors[numbers[rows]]  # type: ignore[union-attr]  # empty without stored
    for start in range(0, len(new), _BLOCK):
        rows = new[start : start + _BLOCK]
        out[rows] = encoder.encode(texts.take(pa.array(rows)).to_pylist(), whole_batches=True)
        if start + _BLOCK < len(new):
            print(f"encoded {start + _BLOCK:,} of {len(new):,} texts", flush=True)
    return len(new)
