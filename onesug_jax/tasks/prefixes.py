"""Other prefixes of the same query: a training row gives one more example.

A user who typed "lego st" and searched "lego star wars" had typed "le" before. `PrefixDraw` draws
another prefix of each training row's query. Lengths are drawn from the prefixes of the log, and the
draw is a function of the row's request_id. A small log then allows more epochs before the model
overfits. The kind `query_any_prefix` uses it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from onesug_jax.files import open_parquet


class PrefixDraw:
    """Draws prefixes with the distribution of lengths of a log.

    Args:
      lengths: `[n]` of the log's prefixes, in characters.
    """

    def __init__(self, lengths: np.ndarray):
        self._lengths = np.sort(np.asarray(lengths, np.int64))

    @classmethod
    def from_log(cls, train_parquet: str) -> PrefixDraw:
        """With the lengths of a train split's prefixes."""
        with open_parquet(train_parquet) as file:
            lengths = [
                pc.utf8_length(batch.column(0)).to_numpy()
                for batch in file.iter_batches(columns=["prefix"])
            ]
        return cls(np.concatenate([np.zeros(0, np.int64), *lengths]))

    def __call__(
        self, request_ids: Sequence[str], prefixes: Sequence[str], queries: Sequence[str]
    ) -> list[str]:
        """One prefix a row; the row's own if the drawn length is at least that of the query."""
        out = []
        for request_id, prefix, query in zip(request_ids, prefixes, queries, strict=True):
            share = zlib.crc32(request_id.encode()) / 2**32
            length = int(self._lengths[int(share * len(self._lengths))])
            out.append(query[:length] if length < len(query) else prefix)
        return out
