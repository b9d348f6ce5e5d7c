"""The search against exact cosines, and against a slow reference of the paper's procedure."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_jax.errors import UserError
from onesug_jax.retrieval.id_tree import IdTree, expected_codewords
from onesug_jax.retrieval.tree_search import PAPER, SearchConfig, StoredVectors, TreeSearch
from tests.retrieval import index_toy

LEVELS, CODES, D = 4, 6, 16
EVERYTHING = (10_000,) * LEVELS


@dataclasses.dataclass
class Shop:
    """Indexed queries, their ids, and searches over them."""

    vectors: np.ndarray
    quantiser: object
    ids: np.ndarray
    kind: str = "int8"

    def search(self, config: SearchConfig) -> TreeSearch:
        latent = config.measure == "latent"
        words = (
            self.quantiser.codebooks
            if latent
            else expected_codewords(self.ids, self.vectors, *self.quantiser.codebooks.shape[:2])
        )
        tree = IdTree.build(self.ids, words)
        stored = StoredVectors.of(self.vectors[tree.rows], self.kind)
        return TreeSearch(tree, stored, words, config, self.quantiser.latents if latent else None)

    def stored(self) -> np.ndarray:
        """The vectors as stored, float64 [N, D] of length 1."""
        stored = StoredVectors.of(self.vectors, self.kind)
        rows = stored.rows.astype(np.float64)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def make(n, seed=1) -> Shop:
    vectors = index_toy.clustered(n, D, seed)
    weight = np.random.default_rng(8).normal(size=(D, 7)).astype(np.float32)
    layers = ((weight, np.full(7, 0.1, np.float32)),)
    return Shop(vectors, *index_toy.residual_kmeans(vectors, LEVELS, CODES, layers=layers))


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make(600)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return index_toy.clustered(40, D, 77)


def exact(shop: Shop, vectors: np.ndarray) -> np.ndarray:
    """All cosines with the stored vectors."""
    return (vectors @ shop.stored().T) / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("measure", ["cosine", "latent"])
@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_a_beam_of_all_nodes_is_exact(shop, vectors, measure, kind):
    shop = dataclasses.replace(shop, kind=kind)
    search = shop.search(SearchConfig(EVERYTHING, candidates=600, measure=measure))
    numbers, cosines = search.search(3 * vectors, 20)  # length does not matter
    every = exact(shop, vectors)
    np.testing.assert_allclose(cosines, -np.sort(-every, axis=1)[:, :20], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every, numbers, 1), cosines, atol=1e-5)


def test_all_candidates_are_exact_from_a_single_path_too(shop, vectors):
    search = shop.search(SearchConfig((1, 1, 1, 1), candidates=600))
    _, cosines = search.search(vectors, 20)
    np.testing.assert_allclose(cosines, -np.sort(-exact(shop, vectors), axis=1)[:, :20], atol=1e-5)


def papers_procedure(shop: Shop, vector: np.ndarray, k: int) -> list[int]:
    """One path down over existing ids; then the bucket of the full id, and wider until k."""
    latent = shop.quantiser.latents(vector[None] / np.linalg.norm(vector))[0].astype(np.float64)
    books = shop.quantiser.codebooks.astype(np.float64)
    ids = [tuple(own) for own in shop.ids.tolist()]
    cosines = exact(shop, vector[None])[0]
    path: tuple = ()
    for level in range(LEVELS):
        left = latent - sum(books[at, code] for at, code in enumerate(path))
        codes = {own[level] for own in ids if own[:level] == path}
        path += (min(codes, key=lambda c: ((left - books[level, c]) ** 2).sum()),)
    found: list[int] = []

    def take(bucket):
        new = [i for i in bucket if i not in found]
        found.extend(sorted(new, key=lambda i: (-cosines[i], i)))

    for length in range(LEVELS, 0, -1):
        if len(found) < k:
            take([i for i, own in enumerate(ids) if own[:length] == path[:length]])
    others = {own[0] for own in ids} - {path[0]}
    while len(found) < k and others:
        code = min(others, key=lambda c: ((latent - books[0, c]) ** 2).sum())
        take([i for i, own in enumerate(ids) if own[0] == code])
        others.remove(code)
    return found[:k]


@pytest.mark.parametrize("k", [1, 5, 20, 150, 599])
def test_one_probe_a_level_is_the_papers_procedure(shop, vectors, k):
    numbers, _ = shop.search(PAPER).search(vectors[:15], k)
    for vector, found in zip(vectors[:15], numbers.tolist(), strict=True):
        assert found == papers_procedure(shop, vector, k)


def test_wider_beams_find_more_and_cosines_find_more_than_latents(shop, vectors):
    best = np.argsort(-exact(shop, vectors), axis=1)[:, :20]

    def recall(config):
        numbers, _ = shop.search(config).search(vectors, 20)
        return np.mean([np.isin(b, n).mean() for b, n in zip(best, numbers, strict=True)])

    narrow, wide = (3, 16, 40, 60), (5, 30, 100, 200)
    assert recall(PAPER) < 0.5 < recall(SearchConfig(narrow, 60)) < recall(SearchConfig(wide, 60))
    assert recall(SearchConfig(wide, 60)) > 0.9
    assert recall(SearchConfig(narrow, 60, measure="latent")) < recall(SearchConfig(narrow, 60))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_list_is_full_ordered_and_without_repeats(data):
    n = data.draw(st.sampled_from([1, 2, 3, 30, 90]), label="queries")
    k = data.draw(st.integers(0, 100), label="k")
    config = SearchConfig(
        tuple(data.draw(st.lists(st.integers(1, 40), min_size=4, max_size=4), label="probes")),
        candidates=data.draw(st.integers(1, 100), label="candidates"),
        order=data.draw(st.sampled_from(["nearest", "bucket"]), label="order"),
        measure=data.draw(st.sampled_from(["cosine", "latent"]), label="measure"),
    )
    shop = make(n, seed=n)
    vectors = index_toy.clustered(3, D, data.draw(st.integers(0, 9)))
    numbers, cosines = shop.search(config).search(vectors, k)
    assert numbers.shape == cosines.shape == (3, k)
    every = exact(shop, vectors)
    for own, found, near in zip(every, numbers, cosines, strict=True):
        full = min(n, k)
        assert (found[:full] >= 0).all()
        assert (found[full:] == -1).all()
        assert np.isneginf(near[full:]).all()
        assert len(set(found[:full].tolist())) == full
        np.testing.assert_allclose(near[:full], own[found[:full]], atol=1e-5)
        if config.order == "nearest":
            assert (np.diff(near[:full]) <= 0).all()


def test_equal_vectors_come_in_the_order_of_their_numbers():
    shop = make(1)
    shop = dataclasses.replace(
        shop, vectors=np.repeat(shop.vectors, 50, 0), ids=np.repeat(shop.ids, 50, 0)
    )
    numbers, cosines = shop.search(SearchConfig()).search(shop.vectors[0], 20)
    assert numbers.tolist() == [list(range(20))]
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_a_batch_gives_the_results_of_single_searches(shop, vectors):
    search = shop.search(SearchConfig((3, 8, 12, 20), candidates=20))
    numbers, cosines = search.search(vectors, 9)
    for i, vector in enumerate(vectors):
        alone = search.search(vector, 9)
        assert alone[0].tolist() == [numbers[i].tolist()]
        np.testing.assert_allclose(alone[1][0], cosines[i], atol=1e-6)


def test_the_limit_bounds_what_is_compared(shop, vectors):
    config = SearchConfig(EVERYTHING, candidates=600, limit=30)
    numbers, _ = shop.search(config).search(vectors, 100)
    assert ((numbers >= 0).sum(axis=1) == 30).all()


@pytest.mark.parametrize("kind, error", [("int8", 0.006), ("float16", 0.0005)])
def test_stored_vectors_are_close_and_of_length_one(kind, error):
    vectors = index_toy.clustered(200, D, 5)
    stored = StoredVectors.of(np.concatenate([7 * vectors, np.zeros((1, D))]), kind)
    back = stored.rows.astype(np.float32) * stored.scales[:, None]
    np.testing.assert_allclose(np.linalg.norm(back[:-1], axis=1), 1, atol=1e-6)
    assert np.abs(back[:-1] - vectors).max() < error
    assert not back[-1].any()
    assert stored.rows.dtype == np.dtype(kind)


def test_vectors_that_cannot_be_searched_for_are_named(shop):
    search = shop.search(SearchConfig())
    with pytest.raises(UserError, match=r"\(3, 5\).*\[B, 16\]"):
        search.search(np.zeros((3, 5)), 2)
    bad = np.ones((3, D))
    bad[1, 2] = np.nan
    with pytest.raises(UserError, match="row 1"):
        search.search(bad, 2)
    numbers, cosines = search.search(np.zeros(D), 2)
    assert (numbers >= 0).all()
    assert not cosines.any()


@pytest.mark.parametrize(
    "bad",
    [
        {"probes": ()},
        {"probes": (1, 0, 1, 1)},
        {"candidates": 0},
        {"limit": 0},
        {"breadth": 0},
        {"order": "best"},
        {"measure": "dot"},
    ],
)
def test_bad_settings_are_named(bad):
    with pytest.raises(UserError, match=f"SearchConfig.{next(iter(bad))}"):
        SearchConfig(**bad)


def test_probes_must_be_one_a_level(shop):
    with pytest.raises(UserError, match="expected 4 numbers"):
        shop.search(SearchConfig(probes=(1, 2)))
