"""Related queries: the pool by popularity and taste, neighbours by e_p*, and no row sees itself."""

import math

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.logs.worth import OrderGrades, fold_of
from onesug_jax.represent.formula import RelatedConfig
from onesug_jax.represent.ranking import FEATURES
from onesug_jax.represent.related import RelatedQueries

COUNTS = {"rug blue": 9, "rug red": 8, "rug green": 2, "run shoes": 5, "tent": 7, "tent blue": 1}
QUERIES = sorted(COUNTS)
# One axis a word, so that cosines can be told by eye.
WORDS = sorted({word for query in QUERIES for word in query.split()})


def vector(text: str) -> np.ndarray:
    out = np.zeros(len(WORDS), np.float32)
    for word in text.split():
        if word in WORDS:
            out[WORDS.index(word)] = 1
    return out / max(np.linalg.norm(out), 1e-9)


class Index:
    """A brute-force stand-in for the prefix index."""

    dimension = len(WORDS)
    pairs = {"ru": {"rug blue": 4, "tent": 1}, "tnet": {"tent blue": 1}}

    def vectors_of(self, numbers):
        return np.stack([vector(QUERIES[i]) for i in numbers])

    def enhanced(self, prefix, without=-1):
        if prefix not in self.pairs:
            return None
        kept = [
            vector(query)
            for query, count in self.pairs[prefix].items()
            if count > 1 or QUERIES.index(query) != without
        ]
        total = sum(kept, np.zeros(len(WORDS), np.float32))
        return total / max(np.linalg.norm(total), 1e-9)

    def pair_count(self, prefix, number):
        return self.pairs.get(prefix, {}).get(QUERIES[number], 0)

    def neighbours(self, prefix, k):
        return np.array([QUERIES.index("run shoes")]) if prefix == "ahead" else None

    def search(self, vectors, k):
        cosines = np.stack([vector(query) for query in QUERIES]) @ vectors
        best = np.argsort(-cosines, kind="stable")[:k]
        return best[None], cosines[best][None]


def known(k=4, index=True, encode=None, **config):
    completions = CompletionIndex.from_counts(list(COUNTS), list(COUNTS.values()))
    return RelatedQueries(
        completions,
        k,
        RelatedConfig(**config),
        index=Index() if index else None,
        encode=encode,
    )


def test_without_an_index_they_are_the_most_popular_completions():
    assert known(2, index=False).related(["ru", "tent", "x"], [[], ["rug red"], []]) == [
        ["rug blue", "rug red"],
        ["tent", "tent blue"],
        [],
    ]
    assert known(2, index=False).vectors(["ru"]) is None


def test_the_pool_is_ranked_by_the_formula():
    """Popularity, likeness to the history, the newest query and this visit, reckoned by hand."""
    history, minutes = ["tent blue", "rug green"], [4.0, 20.0]
    weights = {"popularity": 0.5, "taste": 2.0, "latest": 0.3, "decay": 0.5, "visit": 1.5}
    found = known(4, neighbours=0, words=0.7, repeat=0.2, **weights)

    def like(query, past):
        ours, theirs = set(query.split()), set(past.split())
        shared = len(ours & theirs) / len(ours | theirs)
        return float(vector(query) @ vector(past)) + 0.7 * shared - 0.2 * (query == past)

    def score(query):
        alike = [0.5**j * like(query, h) for j, h in enumerate(history)]
        visit = [2 ** (-m / 10) * like(query, h) for m, h in zip(minutes, history, strict=True)]
        score = 0.5 * math.log(COUNTS[query]) + 2.0 * max(alike) + 0.3 * alike[0]
        return score + 1.5 * max(visit)

    expected = sorted((q for q in QUERIES if q.startswith("ru")), key=score, reverse=True)
    assert found.related(["ru"], [history], minutes=[minutes]) == [expected]
    now = found.related(["ru"], [history])
    assert now != [expected], "ages decide here"
    untold = known(4, neighbours=0, words=0.7, repeat=0.2, ages=False, **weights)
    lists = [untold.related(["ru"], [history], minutes=[m]) for m in (minutes, [9e9, 9e9], [])]
    assert lists == [now] * 3, "just now, whatever they are"


def test_a_large_pool_leaves_a_shortlist_by_searches_and_likeness():
    """Cut by the formula with the cosine alone; places stay those of the whole pool."""
    history = ["rug green"]
    whole, cut = (known(4, taste=9.0, words=5.0, shortlist=most) for most in (100, 2))
    pool = [q for q in QUERIES if q.startswith("ru")]
    assert len(pool) > 2

    def score(query):
        likeness = float(vector(query) @ vector(history[0]))
        config = cut.config
        return config.popularity * math.log(COUNTS[query]) + (9.0 + config.latest) * likeness

    best = sorted(pool, key=score, reverse=True)[:2]
    all_numbers, all_features = whole.candidates("ru", history, (), None)
    numbers, features = cut.candidates("ru", history, (), None)
    assert {cut.completions.queries[i] for i in numbers} == set(best)
    assert set(all_numbers) == {whole.number_of(query) for query in pool}
    rows = dict(zip(all_numbers.tolist(), all_features, strict=True))
    np.testing.assert_allclose(features, [rows[i] for i in numbers.tolist()])
    by_count = sorted(pool, key=lambda query: (-COUNTS[query], query))
    place = FEATURES.index("log_place")
    for number, row in zip(numbers, features, strict=True):
        query = cut.completions.queries[number]
        assert row[place] == pytest.approx(math.log1p(by_count.index(query)))


def test_taste_draws_the_users_own_words_up():
    plain = known(1, neighbours=0).related(["rug"], [[]])
    drawn = known(1, neighbours=0, taste=9.0).related(["rug"], [["rug green"]])
    assert plain == [["rug blue"]] and drawn == [["rug green"]]


def test_older_queries_count_up_to_the_set_number():
    past = ["sofa", "lamp", "rug green"]
    blind, seeing = (known(2, neighbours=0, taste=9, history=history) for history in (2, 3))
    assert blind.history == 2 and known(index=False).history == 0
    assert blind.related(["ru"], [past]) == [["rug blue", "rug red"]]
    assert seeing.related(["ru"], [past])[0][0] == "rug green"


def test_neighbours_have_the_last_places_and_fill_what_is_left():
    found = known(4, neighbours=2).related(["ru"], [[]])[0]
    assert found[:2] == ["rug blue", "rug red"], "the pool first"
    assert set(found[2:]) <= set(QUERIES) and len(set(found)) == 4
    # A mistyped prefix has no completions: all its places are the search's.
    assert (
        known(2).related(["tnet"], [[]]) == [["tent blue", "rug blue"]]
        or known(2).related(["tnet"], [[]])[0][0] == "tent blue"
    )


def test_the_papers_search_alone():
    found = known(3, pool=0, neighbours=3).related(["ru"], [["rug green"]])
    numbers, _ = Index().search(Index().enhanced("ru"), 3)
    assert found == [[QUERIES[i] for i in numbers[0]]]


def test_an_unknown_prefix_is_embedded_or_has_no_neighbours():
    assert known(2).related(["zz"], [[]]) == [[]]
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.stack([vector("tent") for _ in texts])

    finder = known(2, encode=encode)
    assert finder.related(["zz"], [[]])[0][0] == "tent"
    finder.related(["zz"], [[]])
    assert asked == ["zz"], "remembered"
    np.testing.assert_array_equal(finder.vectors(["zz", "ru"])[0], vector("tent"))


def test_a_training_row_does_not_see_itself():
    """Neither in the counts, nor in e_p* where it alone led from the prefix to its query."""
    finder = known(6)
    assert "tent blue" in finder.related(["tent"], [[]])[0]
    assert "tent blue" not in finder.related(["tent"], [[]], ["tent blue"])[0]
    assert finder.alone(["ru", "ru", "tnet"], ["tent", "rug blue", "tent blue"]) == [
        True,
        False,
        True,
    ]
    full, less = finder.vectors(["ru", "ru"], [None, "tent"])
    np.testing.assert_allclose(less, vector("rug blue"), atol=1e-6)
    assert not np.allclose(full, less)
    assert np.allclose(finder.vectors(["ru"], ["rug blue"])[0], full), "seen four times"


@pytest.mark.parametrize("wrong", [{"pool": -1}, {"neighbours": -1}, {"decay": 0.0}])
def test_settings_that_cannot_hold_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RelatedConfig(**wrong)


def test_grades_are_those_of_the_queries_and_leave_out_the_own_fold():
    visitors = [f"u{i}" for i in range(40)]
    folds = np.array([fold_of(visitor) for visitor in visitors])
    # Everybody buys after "tent" but the visitors of fold 0, who never do.
    numbers = np.full(40, QUERIES.index("tent"))
    others = np.full(40, QUERIES.index("rug red"))
    grades = OrderGrades.from_rows(
        len(QUERIES),
        np.concatenate([numbers, others]),
        np.concatenate([folds != 0, folds < 0]),
        np.concatenate([folds, folds]),
    )
    finder = RelatedQueries(
        CompletionIndex.from_counts(list(COUNTS), list(COUNTS.values())), 2, grades=grades
    )
    (now,) = finder.worth([["tent", "rug red"]])
    assert now[0] > now[1]
    mine, theirs = visitors[int(np.argmax(folds == 0))], visitors[int(np.argmax(folds == 1))]
    trained = finder.worth([["tent"], ["tent"]], [mine, theirs])
    assert trained[0][0] >= now[0] >= trained[1][0]
    assert finder.worth([[]]) == [[]]
    assert known(1).worth([["tent"]]) == [[]], "nothing is known of orders"


def test_pools_are_the_most_searched_of_a_prefix_or_of_what_was_meant():
    """Nobody's taste, at most k; an unknown beginning gets what is one slip away."""
    related = known()
    assert related.pools(["ru", "rug g", ""], 2) == [
        ("rug blue", "rug red"),
        ("rug green",),
        ("rug blue", "rug red"),
    ]
    assert related.pools(["rgu r"], 3) == [("rug red",)]
    assert known(typos=False).pools(["rgu r"], 3) == [()]
