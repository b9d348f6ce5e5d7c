"""The queries that start with a prefix, against a scan; prefixes of very many queries."""

import itertools

import numpy as np

from onesug_jax.logs.asof.completions import Completions, WidePrefixes, best

WORDS = sorted("".join(w) for n in (1, 2, 3) for w in itertools.product("ab ", repeat=n))


def listed(index, size):
    return sorted(np.arange(size)[index].tolist())


def test_numbers_equal_those_of_a_scan():
    rng = np.random.default_rng(1)
    words = rng.permutation(WORDS).tolist()
    completions = Completions(sorted(words[:10]))
    for text in words[10:]:
        assert completions.number(text) == -1
        number = completions.add(text)
        assert (completions.number(text), completions[number]) == (number, text)
        for prefix in ("", "a", "b ", "zz", text):
            expected = [n for n, t in enumerate(completions) if t.startswith(prefix)]
            assert listed(completions.numbers(prefix), len(completions)) == expected
            assert completions.starts(prefix) == bool(expected)


def test_members_of_a_wide_prefix_have_the_highest_counts_or_are_newly_searched():
    texts = [f"a{n:02d}" for n in range(40)]
    counts = np.zeros(40)
    wide = WidePrefixes(Completions(texts), 5, lambda numbers, time: counts[numbers])
    for n in range(11):
        counts[n] = 100 - n
        wide.searched(texts[n], n, 0)
    assert wide.numbers("a").tolist() == [0, 1, 2, 3, 4]
    wide.searched(texts[30], 30, 0)
    assert wide.numbers("a").tolist() == [0, 1, 2, 3, 4, 30]
    assert wide.numbers("a0") is None  # ten texts, not more than twice the breadth


def test_best_takes_the_highest_scores_above_zero_and_the_first_of_equal_ones():
    scores = np.array([1.0, 3, 0, 3, 2, 1, 1])
    assert best(scores, 3).tolist() == [1, 3, 4]
    assert best(scores, 5).tolist() == [1, 3, 4, 0, 5]
    assert best(scores, 99).tolist() == [1, 3, 4, 0, 5, 6]
    assert best(np.zeros(4), 2).tolist() == []
