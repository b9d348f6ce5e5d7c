"""Separates queries that share a semantic id (PAPER.md section 2.4).

Of the queries that share an id, the less searched move to the nearest free code of the last level;
their earlier codes stay those of the quantiser. Numpy only.
"""

from __future__ import annotations

import numpy as np

from onesug_jax.semantic_ids.ids import bits_of, pack
from onesug_jax.semantic_ids.quantiser import Quantiser

_MOVERS = 8192  # queries whose distances to the codes of the last level are in memory at a time


def resolve_collisions(
    ids: np.ndarray, counts: np.ndarray, embeddings: np.ndarray, quantiser: Quantiser
) -> np.ndarray:
    """Ids [N, levels], distinct as far as the codes of the last level suffice.

    The most searched query of an id retains it (ties: the smaller number). The others, most
    searched first, take the nearest code of the last level that is free under the same first
    levels; if none is free, they still share an id.
    """
    codes = quantiser.size
    bits = np.uint64(bits_of(codes, quantiser.levels))
    keys = pack(ids, codes)
    counts = np.asarray(counts, np.int64)
    order = np.lexsort((-counts, keys))
    to_move = order[1:][keys[order[1:]] == keys[order[:-1]]]  # all but the first of each id
    taken_keys = np.unique(keys)
    to_move = to_move[np.lexsort((to_move, -counts[to_move], keys[to_move] >> bits))]
    new = np.array(ids, np.uint16)
    parent, free = None, np.zeros(0, bool)
    for start in range(0, len(to_move), _MOVERS):
        block = to_move[start : start + _MOVERS]
        movers = np.sort(block)  # so that a memory map is read in order
        latents = quantiser.latents(embeddings[movers])
        residuals = latents - quantiser.reconstruct(ids[movers, :-1])
        last = quantiser.codebooks[-1]
        distances = np.square(last).sum(1) - 2 * residuals @ last.T
        for query, row in zip(block, np.searchsorted(movers, block), strict=True):
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
                code = int(np.where(free, distances[row], np.inf).argmin())
                new[query, -1], free[code], room = code, False, room - 1
    return new
