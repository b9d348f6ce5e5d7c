"""Most popular completion against a linear scan, saving and loading."""

import random
from collections import Counter

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex

ALPHABET = ["a", "b", " ", "é", "手", "机", "\uffff", "\U0001f600", "\U0010ffff"]


def scan(counts: Counter, prefix: str, k: int) -> list[str]:
    """The definition: filter, then sort."""
    return sorted((q for q in counts if q.startswith(prefix)), key=lambda q: (-counts[q], q))[:k]


@pytest.fixture(scope="module")
def counts() -> Counter:
    rng = random.Random(3)
    table = Counter()
    for _ in range(6000):
        length = min(rng.randint(1, 6), rng.randint(1, 6))
        table["".join(rng.choice(ALPHABET) for _ in range(length))] += rng.choice([1, 1, 1, 2, 7])
    return table


@pytest.fixture(scope="module")
def index(counts) -> CompletionIndex:
    return CompletionIndex.from_counts(list(counts), list(counts.values()))


def prefixes(rng: random.Random, n: int):
    yield from ["", "z", "\uffff", "\U0010ffff", "\U0010ffff\U0010ffff"]
    for _ in range(n):
        yield "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 4)))


def test_lists_are_those_of_a_linear_scan(index, counts):
    rng = random.Random(5)
    for prefix in prefixes(rng, 300):
        for k in (1, 16, 100):
            assert index.complete(prefix, k) == scan(counts, prefix, k)
        assert index.starts(prefix) == any(q.startswith(prefix) for q in counts)


def test_sorted_queries_and_counts(index, counts):
    assert list(index.queries) == sorted(counts)
    assert index.counts.tolist() == [counts[q] for q in sorted(counts)]
    assert index.queries[-1] == sorted(counts)[-1]
    assert index.queries[2:5] == sorted(counts)[2:5]
    assert index.count(index.queries[10]) == counts[index.queries[10]]
    assert index.count("never searched") == 0
    with pytest.raises(IndexError):
        index.queries[len(index)]


def test_counts_of_equal_queries_are_summed_and_zeros_left_out():
    index = CompletionIndex.from_counts(["b", "a", "b", "c"], [2, 3, 2, 0])
    assert list(index.queries) == ["a", "b"]
    assert index.complete("", 9) == ["b", "a"]


@pytest.mark.parametrize(
    "queries, numbers", [(["a"], [-1]), (["a", "b"], [1]), (["a\nb"], [1]), ([""], [1])]
)
def test_impossible_counts_are_refused(queries, numbers):
    with pytest.raises(ValueError):
        CompletionIndex.from_counts(queries, numbers)


def test_half_a_surrogate_pair_matches_nothing(index):
    assert index.complete("\ud800", 5) == []
    assert not index.starts("a\udfff")


def test_a_loaded_index_gives_the_same_lists(index, tmp_path):
    index.save(str(tmp_path / "index"))
    loaded = CompletionIndex.load(str(tmp_path / "index"))
    for prefix in prefixes(random.Random(9), 60):
        assert loaded.complete(prefix, 16) == index.complete(prefix, 16)
    assert isinstance(loaded.counts, np.memmap)


def test_an_empty_index_answers_empty_lists(tmp_path):
    CompletionIndex.from_counts([], []).save(str(tmp_path))
    index = CompletionIndex.load(str(tmp_path))
    assert (len(index), index.complete("", 3), index.starts("")) == (0, [], False)


def test_a_damaged_or_missing_index_is_named(index, tmp_path):
    with pytest.raises(UserError, match="queries.txt"):
        CompletionIndex.load(str(tmp_path / "nowhere"))
    index.save(str(tmp_path))
    with open(tmp_path / "queries.txt", "ab") as file:
        file.write(b"more\n")
    with pytest.raises(UserError, match="damaged"):
        CompletionIndex.load(str(tmp_path))


def test_lists_of_every_length_are_the_best_of_the_range_also_from_the_cache():
    counts = {f"a{i:04}": 1 + (i * 37) % 101 for i in range(2000)}
    index = CompletionIndex.from_counts(list(counts), list(counts.values()))
    expected = sorted(counts, key=lambda text: (-counts[text], text))
    for k in (5, 64, 65, 1500, 3000):
        for _ in range(2):  # the second time from the cache
            assert [index.queries[i] for i in index.top("a", k)] == expected[:k]
            narrow = sorted((t for t in counts if t < "a1"), key=lambda t: (-counts[t], t))
            assert [index.queries[i] for i in index.top("a0", k)] == narrow[:k]
    assert index.top("b", 3).tolist() == []
