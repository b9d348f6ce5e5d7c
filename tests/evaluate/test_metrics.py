"""Metrics against plain Python definitions, and by hand."""

import math
import random

import numpy as np
import pytest

from onesug_jax.evaluate import metrics


def slow(lists, truths, k):
    """HR, MRR and nDCG from the gains of every position."""
    hits, reciprocal, gains = [], [], []
    for texts, truth in zip(lists, truths, strict=True):
        relevant = [1.0 if text == truth else 0.0 for text in texts[:k]]
        hits.append(any(relevant))
        reciprocal.append(max([r / (i + 1) for i, r in enumerate(relevant)], default=0.0))
        dcg = sum((2**r - 1) / math.log2(i + 2) for i, r in enumerate(relevant))
        gains.append(dcg / (1.0 / math.log2(2)))
    return [sum(values) / len(values) for values in (hits, reciprocal, gains)]


@pytest.mark.parametrize("k", [1, 2, 10, 16, 30])
def test_metrics_equal_their_definitions(k):
    rng = random.Random(k)
    texts = [f"q{i}" for i in range(40)]
    lists = [rng.sample(texts, rng.randint(0, 20)) for _ in range(500)]
    truths = [rng.choice(texts) for _ in lists]
    ranks = np.array(
        [metrics.rank_of(truth, found) for truth, found in zip(truths, lists, strict=True)]
    )
    hits, reciprocal, gains = slow(lists, truths, k)
    assert metrics.hr_at(ranks, k) == pytest.approx(hits)
    assert metrics.mrr_at(ranks, k) == pytest.approx(reciprocal)
    assert metrics.ndcg_at(ranks, k) == pytest.approx(gains)


def test_metrics_without_requests_are_nan():
    for metric in (metrics.hr_at, metrics.mrr_at, metrics.ndcg_at):
        assert math.isnan(metric(np.array([], int), 16))


def test_coverage_and_answered():
    lists = [["a", "b"], ["b"], []]
    assert metrics.coverage(lists, 8) == 0.25
    assert metrics.answered(lists) == pytest.approx(2 / 3)
    assert math.isnan(metrics.coverage([], 0))


def slow_diversity(texts):
    pairs = [{t[i : i + 2] for i in range(max(1, len(t) - 1))} for t in texts]
    values = [
        1 - len(pairs[i] & pairs[j]) / len(pairs[i] | pairs[j])
        for i in range(len(texts))
        for j in range(i)
    ]
    return sum(values) / len(values)


def test_diversity_is_the_mean_over_pairs():
    rng = random.Random(1)
    lists = [
        ["".join(rng.choices("ab手机", k=rng.randint(1, 8))) for _ in range(rng.randint(2, 16))]
        for _ in range(60)
    ]
    for texts in lists:
        assert metrics.list_diversity(texts) == pytest.approx(slow_diversity(texts), abs=1e-6)
    expected = sum(map(slow_diversity, lists)) / len(lists)
    assert metrics.diversity([*lists, [], ["alone"]]) == pytest.approx(expected, abs=1e-6)


def test_diversity_extremes():
    assert metrics.diversity([["lego", "lego"]]) == pytest.approx(0.0)
    assert metrics.diversity([["lego", "tin"]]) == pytest.approx(1.0)
    assert math.isnan(metrics.diversity([["lego"]]))
