"""Exact list metrics: HR@k, MRR@k, nDCG@k of ranks; coverage and diversity of lists.

A request has one right answer, the query searched in the end, so its list is described by one
number: the 1-based rank of that answer, 0 where the list lacks it. All metrics are shares between 0
and 1 (the evaluator makes per cent of them), and NaN over no request at all. Plain numpy; what
counts as a hit is the evaluator's business.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def rank_of(truth: Hashable, suggestions: Sequence[Hashable]) -> int:
    """1-based rank of `truth` in `suggestions`, 0 if absent."""
    for rank, suggestion in enumerate(suggestions, 1):
        if suggestion == truth:
            return rank
    return 0


def hr_at(ranks: np.ndarray, k: int) -> float:
    """Hit rate: the share of requests whose answer is among the first k; `ranks` int [N]. With one
    right answer it is AmazonQAC's Success@k too.

    Examples:
      >>> import numpy as np
      >>> from onesug_jax import hr_at
      >>> hr_at(np.array([1, 0, 4, 20]), 16)
      0.5
    """
    return _mean(_hits(ranks, k).astype(np.float64))


def mrr_at(ranks: np.ndarray, k: int) -> float:
    """Mean reciprocal rank, 0 for an answer beyond k; `ranks` int [N].

    Examples:
      >>> import numpy as np
      >>> from onesug_jax import mrr_at
      >>> mrr_at(np.array([1, 0, 4, 0]), 16)
      0.3125
    """
    ranks = np.asarray(ranks)
    return _mean(np.where(_hits(ranks, k), 1.0 / np.maximum(ranks, 1), 0.0))


def ndcg_at(ranks: np.ndarray, k: int) -> float:
    """Mean nDCG with one relevant answer, 1 / log2(1 + rank) within k; `ranks` int [N].

    The ideal list has the answer first and so a gain of 1.
    """
    ranks = np.asarray(ranks)
    return _mean(np.where(_hits(ranks, k), 1.0 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0))


def coverage(lists: Iterable[Sequence[str]], queries: int) -> float:
    """Distinct suggestions in all lists / the shop's number of distinct `queries`."""
    distinct = len({text for suggestions in lists for text in suggestions})
    return distinct / queries if queries else float("nan")


def answered(lists: Iterable[Sequence[str]]) -> float:
    """Share of requests that got at least one suggestion."""
    return _mean(np.array([bool(len(suggestions)) for suggestions in lists], np.float64))


def diversity(lists: Iterable[Sequence[str]]) -> float:
    """Mean unlikeness of two suggestions of one list, over lists of two or more.

    Unlikeness is 1 - Jaccard similarity of the sets of neighbouring character pairs: it needs no
    words, so it means the same in English and in Chinese. 0: all alike, 1: nothing in common.
    """
    values = [list_diversity(suggestions) for suggestions in lists if len(suggestions) > 1]
    return _mean(np.array(values, np.float64))


def list_diversity(suggestions: Sequence[str]) -> float:
    """`diversity` of one list: the mean over its n (n - 1) / 2 pairs; NaN if n < 2."""
    size = len(suggestions)
    if size < 2:
        return float("nan")
    pairs = [{text[i : i + 2] for i in range(max(1, len(text) - 1))} for text in suggestions]
    number = {pair: at for at, pair in enumerate(set().union(*pairs))}
    holds = np.zeros((size, len(number)), np.float32)
    for row, members in enumerate(pairs):
        holds[row, [number[pair] for pair in members]] = 1.0
    common = holds @ holds.T
    sizes = np.diag(common)
    alike = common / (sizes[:, None] + sizes[None, :] - common)
    return float(1.0 - (alike.sum() - size) / (size * (size - 1)))


def _hits(ranks: np.ndarray, k: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    return (ranks > 0) & (ranks <= k)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def interval(values: np.ndarray, seed: int = 0, times: int = 1000) -> tuple[float, float]:
    """Where the mean of `values [N]`, one a request, lies in 95 % of `times` draws of N requests
    with replacement (percentile bootstrap); NaN, NaN over none.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return math.nan, math.nan
    # How often each distinct value is drawn: as many numbers as there are ranks, not requests.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), times)
    low, high = np.percentile(drawn @ distinct / len(values), (2.5, 97.5))
    return float(low), float(high)
