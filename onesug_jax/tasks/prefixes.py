"""Other beginnings of the same query: a row of the log teaches more than the one prefix it holds.

Whoever typed "lego st" and searched "lego star wars" had typed "le" before. `PrefixDraw` gives each
training row one more prefix, cut from its query at a length that people's prefixes have, so that a
small log lasts for more passes before the model learns it by heart. A draw is a function of the
row's request_id alone. Numpy and pyarrow; the kind `query_any_prefix` uses it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq


class PrefixDraw:
    """Draws prefixes whose lengths are distributed as those of a log.

    Args:
      lengths: `[n]` of the log's prefixes, in characters.
    """

    def __init__(self, lengths: np.ndarray):
        self._lengths = np.sort(np.asarray(lengths, np.int64))

    @classmethod
    def from_log(cls, train_parquet: str) -> PrefixDraw:
        """With the lengths of a train split's prefixes."""
        with pq.ParquetFile(train_parquet) as file:
            found = [
                pc.utf8_length(batch.column(0)).to_numpy()
                for batch in file.iter_batches(columns=["prefix"])
            ]
        return cls(np.concatenate([np.zeros(0, np.int64), *found]))

    def __call__(
        self, request_ids: Sequence[str], prefixes: Sequence[str], queries: Sequence[str]
    ) -> list[str]:
        """One prefix a row; the row's own where the query is not longer than the length drawn."""
        out = []
        for request_id, prefix, query in zip(request_ids, prefixes, queries, strict=True):
            share = zlib.crc32(request_id.encode()) / 2**32
            length = int(self._lengths[int(share * len(self._lengths))])
            out.append(query[:length] if length < len(query) else prefix)
        return out
