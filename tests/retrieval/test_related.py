"""Related queries are the search around e_p*; without an index, completions by popularity."""

import numpy as np

from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.retrieval.related import RelatedQueries

COUNTS = {"rug blue": 9, "rug red": 8, "rug green": 2, "run shoes": 5, "tent": 7, "tent blue": 1}
QUERIES = sorted(COUNTS)
WORDS = sorted({word for query in QUERIES for word in query.split()})  # one axis a word


def vector(text):
    out = np.array([float(word in text.split()) for word in WORDS], np.float32)
    return out / max(np.linalg.norm(out), 1e-9)


class Index:
    """A brute-force stand-in for the prefix index."""

    dimension = len(WORDS)
    stars = {"ru": "rug blue", "tnet": "tent blue"}  # prefix -> e_p*  # noqa: RUF012

    def vectors_of(self, numbers):
        return np.stack([vector(QUERIES[i]) for i in numbers])

    def enhanced(self, prefix):
        return vector(self.stars[prefix]) if prefix in self.stars else None

    def neighbours(self, prefix, k):
        return np.array([QUERIES.index("run shoes")]) if prefix == "stored" else None

    def search(self, vectors, k):
        cosines = np.stack([vector(query) for query in QUERIES]) @ vectors
        best = np.argsort(-cosines, kind="stable")[:k]
        return np.append(best, -1)[None, :k], cosines[best][None]


def finder_of(k=4, index=True, encode=None, **options):
    completions = CompletionIndex.from_counts(list(COUNTS), list(COUNTS.values()))
    index = Index() if index else None
    return RelatedQueries(completions, k, index=index, encode=encode, **options)


def test_related_queries_are_the_search_around_the_enhanced_prefix():
    found = finder_of(3).related(["ru", "stored", "tnet"])
    cosines = {query: float(vector(query) @ vector("rug blue")) for query in QUERIES}
    assert found[0] == sorted(QUERIES, key=lambda query: (-cosines[query], query))[:3]
    assert found[1] == ["run shoes"], "computed when the index was built"
    assert found[2][0] == "tent blue"
    assert len(finder_of(99).related(["ru"])[0]) == len(QUERIES), "-1 is no query"
    assert finder_of(0).related(["ru"]) == [[]]


def test_a_prefix_outside_the_index_is_embedded_once_or_has_no_related_queries():
    assert finder_of().related(["zz"]) == [[]]
    assert not finder_of().vectors(["zz"]).any()
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return np.stack([vector("tent") for _ in texts])

    finder = finder_of(2, encode=encode)
    assert finder.related(["zz"])[0][0] == "tent" == finder.related(["zz"])[0][0]
    np.testing.assert_array_equal(finder.vectors(["zz", "ru"])[0], vector("tent"))
    assert encoded == ["zz"]
    assert finder.text_vector("rug red").tolist() == vector("rug red").tolist()
    assert finder_of(soft=False).vectors(["ru"]) is None


def test_without_an_index_related_queries_are_the_most_searched_completions():
    plain = finder_of(2, index=False)
    assert plain.related(["ru", "x"]) == [["rug blue", "rug red"], []]
    assert plain.vectors(["ru"]) is None and plain.text_vector("ru") is None


def test_completions_are_the_most_searched_of_a_prefix_or_of_its_corrections():
    found = finder_of(2, index=False).related(["ru", "rug g", "", "rgu r"])
    assert found == [["rug blue", "rug red"], ["rug green"], ["rug blue", "rug red"], ["rug red"]]
