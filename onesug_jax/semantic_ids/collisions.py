"""An id of their own for queries that fall on the same semantic id (PAPER.md section 2.4).

The less searched move to the nearest free code of the last level, so that their ids still begin as
the quantiser had them. Needs numpy alone; trains nothing and stores nothing.
"""

from __future__ import annotations

import numpy as np

from onesug_jax.semantic_ids.ids import bits_of, pack
from onesug_jax.semantic_ids.quantiser import Quantiser

_MOVERS = 8192  # queries whose distances to the last codes are in memory at a time


def resolve_collisions(
    ids: np.ndarray, counts: np.ndarray, embeddings: np.ndarray, quantiser: Quantiser
) -> np.ndarray:
    """Ids [N, levels] in which queries have a full id to themselves where there is room.

    The most searched query of an id retains it (ties: the smaller number). The others, most
    searched first, take the nearest code of the last level that no query has under the same first
    levels; where none is free they still share one.
    """
    codes, levels = quantiser.size, quantiser.levels
    bits = np.uint64(bits_of(codes, levels))
    keys = pack(ids, codes)
    counts = np.asarray(counts, np.int64)
    order = np.lexsort((-counts, keys))
    later = order[1:][keys[order[1:]] == keys[order[:-1]]]  # not the first of their id
    taken_keys = np.unique(keys)
    parents = keys[later] >> bits
    later = later[np.lexsort((later, -counts[later], parents))]
    new = np.array(ids, np.uint16)
    parent, free = None, np.zeros(0, bool)
    for start in range(0, len(later), _MOVERS):
        block = later[start : start + _MOVERS]
        movers = np.sort(block)  # so that a memory map is read in order
        latents = quantiser.latents(embeddings[movers])
        residuals = latents - quantiser.reconstruct(ids[movers, :-1])
        last = quantiser.codebooks[-1]
        distances = np.square(last).sum(1) - 2 * residuals @ last.T
        for query, at in zip(block, np.searchsorted(movers, block), strict=True):
            own = keys[query] >> bits
            if own != parent:
                parent = own
                low, high = (own << bits), (own << bits) | np.uint64((1 << int(bits)) - 1)
                begin = np.searchsorted(taken_keys, low, side="left")
                end = np.searchsorted(taken_keys, high, side="right")
                free = np.ones(codes, bool)
                free[(taken_keys[begin:end] - low).astype(np.int64)] = False
                room = codes - int(end - begin)
            if room:
                row = np.where(free, distances[at], np.inf)
                code = int(row.argmin())
                new[query, -1], free[code], room = code, False, room - 1
    return new
