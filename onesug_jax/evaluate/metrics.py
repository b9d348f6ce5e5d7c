"""Exact list metrics: HR@k, MRR@k, nDCG@k of ranks; coverage and diversity of lists.

A request has one right answer, the searched query, so one number describes its list: the 1-based
rank of the answer, 0 if absent. All metrics are shares between 0 and 1 (the evaluator converts them
to per cent), and NaN without requests. `rows` defines a hit.
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
    right answer it equals AmazonQAC's Success@k.

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
    """Mean nDCG with one relevant answer, 1 / log2(1 + rank) within k; `ranks` int [N]. The ideal
    gain is 1.
    """
    ranks = np.asarray(ranks)
    return _mean(np.where(_hits(ranks, k), 1.0 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0))


def coverage(lists: Iterable[Sequence[str]], queries: int) -> float:
    """Distinct suggestions in all lists, divided by the shop's number of distinct `queries`."""
    distinct = len({text for suggestions in lists for text in suggestions})
    return distinct / queries if queries else float("nan")


def answered(lists: Iterable[Sequence[str]]) -> float:
    """Share of requests with at least one suggestion."""
    return _mean(np.array([bool(len(suggestions)) for suggestions in lists], np.float64))


def diversity(lists: Iterable[Sequence[str]]) -> float:
    """Mean dissimilarity of two suggestions of one list, over lists of two or more.

    Dissimilarity is 1 - Jaccard similarity of the sets of character bigrams, which needs no words
    and so works for English and Chinese. 0: all equal, 1: nothing in common.
    """
    values = [list_diversity(suggestions) for suggestions in lists if len(suggestions) > 1]
    return _mean(np.array(values, np.float64))


def list_diversity(suggestions: Sequence[str]) -> float:
    """`diversity` of one list: the mean over its n (n - 1) / 2 pairs; NaN if n < 2."""
    size = len(suggestions)
    if size < 2:
        return float("nan")
    bigrams = [{text[i : i + 2] for i in range(max(1, len(text) - 1))} for text in suggestions]
    column = {bigram: index for index, bigram in enumerate(set().union(*bigrams))}
    contains = np.zeros((size, len(column)), np.float32)
    for row, members in enumerate(bigrams):
        contains[row, [column[bigram] for bigram in members]] = 1.0
    common = contains @ contains.T
    sizes = np.diag(common)
    similarity = common / (sizes[:, None] + sizes[None, :] - common)
    return float(1.0 - (similarity.sum() - size) / (size * (size - 1)))


def _hits(ranks: np.ndarray, k: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    return (ranks > 0) & (ranks <= k)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def interval(values: np.ndarray, seed: int = 0, times: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of `values [N]`, one per request, from `times` bootstrap
    samples (percentile bootstrap); NaN, NaN without values.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return math.nan, math.nan
    # Counts of the distinct values are drawn, since there are fewer ranks than requests.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), times)
    low, high = np.percentile(drawn @ distinct / len(values), (2.5, 97.5))
    return float(low), float(high)
