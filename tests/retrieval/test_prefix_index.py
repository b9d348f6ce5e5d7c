"""The index on disk: searches, refused inputs, damaged files and interrupted builds."""

import os

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.retrieval import index_files
from onesug_jax.retrieval.enhance import EnhanceConfig, enhance
from onesug_jax.retrieval.prefix_index import PrefixIndex
from onesug_jax.retrieval.tree_search import PAPER, SearchConfig
from tests.retrieval import index_toy

D = 12
PRINTS = {"encoder": "e1", "ids": "i1", "mined": "m1"}
NARROW = SearchConfig((4, 10, 20, 30), candidates=40)


def inputs(n: int = 300, p: int = 60, seed: int = 0) -> dict:
    """Arguments of `build`: n queries, p prefixes, a few pairs a prefix."""
    rng = np.random.default_rng(seed)
    words = ["lego", "手机", "é", "\U0001f600", "shoe"]
    texts = sorted({f"{words[i % 5]} {i:04d}" for i in range(n)}, key=str.encode)
    vectors = index_toy.clustered(n, D, seed)
    quantiser, ids = index_toy.residual_kmeans(vectors, 4, 6)
    sizes = rng.integers(0, 7, p)
    prefixes = [f"{words[i % 5][:1]}{i:03d}" for i in range(max(p - 1, 0))] + texts[:1] * (p > 0)
    numbers = [rng.choice(n, min(size, n), replace=False) for size in sizes]
    return {
        "queries": texts,
        "embeddings": vectors,
        "ids": ids,
        "quantiser": quantiser,
        "prefixes": sorted(prefixes, key=str.encode),
        "prefix_vectors": index_toy.clustered(p, D, seed + 1),
        "pair_offsets": np.concatenate([[0], np.cumsum([len(own) for own in numbers])]),
        "pair_queries": np.concatenate([np.zeros(0, int), *numbers]).astype(np.int32),
        "fingerprints": PRINTS,
        "search_config": NARROW,
        "related": 8,
        "similar": 5,
    }


@pytest.fixture(scope="module")
def given() -> dict:
    return inputs()


@pytest.fixture(scope="module")
def index(given, tmp_path_factory) -> PrefixIndex:
    return PrefixIndex.build(str(tmp_path_factory.mktemp("index")), **given)


def mixed(given: dict, vectors_of, config: EnhanceConfig | None = None) -> np.ndarray:
    """e_p* of all prefixes, from prefix vectors as they are stored."""
    own = given["prefix_vectors"].astype(np.float16)
    return enhance(own, given["pair_offsets"], given["pair_queries"], vectors_of, config)


def test_enhanced_prefixes_are_the_formula(index, given):
    found = np.stack([index.enhanced(prefix) for prefix in given["prefixes"]])
    np.testing.assert_allclose(found, mixed(given, index.vectors_of), atol=1e-6)
    np.testing.assert_allclose(found, mixed(given, given["embeddings"].__getitem__), atol=0.01)
    assert index.enhanced("nothing like it") is None


def test_vectors_are_those_of_the_numbers(index, given):
    numbers = np.array([5, 0, 299, 5])
    np.testing.assert_allclose(index.vectors_of(numbers), given["embeddings"][numbers], atol=0.01)
    assert index.dimension == D


def test_neighbours_are_the_search_around_the_enhanced_prefix(index, given):
    for prefix in given["prefixes"]:
        numbers, cosines = index.search(index.enhanced(prefix), 20)
        assert (np.diff(cosines[0]) <= 0).all()
        texts = [given["queries"][i] for i in numbers[0]]
        assert index.related_to(index.enhanced(prefix), 20) == texts
        for k in (0, 1, 8, 9):  # `build` computed 8
            assert index.neighbours(prefix, k).tolist() == numbers[0][:k].tolist()
    assert index.neighbours("nothing like it", 5) is None


def test_similar_queries_are_the_nearest_of_the_others(index):
    found = index.nearby(AsOfConfig()).similar
    nearest = index.search(index.vectors_of(np.arange(300)), 6)[0]
    for number, row in enumerate(nearest.tolist()):
        assert found[number].tolist() == [other for other in row if other != number][:5]


def test_a_query_that_is_the_prefix_itself_may_be_related(tmp_path):
    given = inputs(n=3, p=1)
    index = PrefixIndex.build(str(tmp_path), **given)
    assert given["prefixes"] == given["queries"][:1]
    assert 0 in index.neighbours(given["prefixes"][0], 3)


def test_loaded_again_is_the_same_and_read_only(index, given, tmp_path):
    PrefixIndex.build(str(tmp_path), **given)
    again = PrefixIndex.load(str(tmp_path), expect=PRINTS)
    vectors = mixed(given, index.vectors_of)
    for one, other in zip(again.search(vectors, 9), index.search(vectors, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(again.queries) == given["queries"]
    assert list(again.prefixes) == given["prefixes"]
    assert again.search_config == NARROW
    assert [again.prefix_number(p) for p in given["prefixes"]] == list(range(60))
    assert again.prefix_number("nothing like it") == again.prefix_number("\ud800") == -1
    for array in again._arrays.values():
        assert not array.flags.writeable
        assert not array.flags.owndata
        if array.size:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_the_same_inputs_give_the_same_bytes(given, tmp_path):
    for name in ("one", "two"):
        PrefixIndex.build(str(tmp_path / name), **given)
    for name in os.listdir(tmp_path / "one"):
        if name != "quantiser.npz":  # a zip file, with times in it
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("measure", ["cosine", "latent"])
def test_the_papers_way_works_from_a_loaded_index_alone(given, tmp_path, measure):
    config = SearchConfig(PAPER.probes, 1, "bucket", measure)
    PrefixIndex.build(str(tmp_path), **{**given, "search_config": config})
    index = PrefixIndex.load(str(tmp_path))
    for prefix in given["prefixes"][:20]:
        # A longer list in bucket order begins with the shorter one.
        longer = index.search(index.enhanced(prefix), 12)[0][0]
        assert index.neighbours(prefix, 4).tolist() == longer[longer >= 0][:4].tolist()


@pytest.mark.parametrize("n, p", [(1, 1), (1, 0), (2, 5), (300, 0)])
def test_small_shops_and_no_prefixes(tmp_path, n, p):
    given = inputs(n=n, p=p)
    index = PrefixIndex.build(str(tmp_path), **given)
    assert (len(index), len(index.prefixes)) == (n, p)
    found = index.search(given["embeddings"][0], n + 5)[0][0]
    assert sorted(found[found >= 0]) == list(range(n))
    for prefix in given["prefixes"]:
        assert sorted(index.neighbours(prefix, 7)) == list(range(n))


@pytest.mark.parametrize("name", ["encoder", "ids", "mined", "other"])
def test_another_fingerprint_is_refused_by_name(index, given, tmp_path, name):
    PrefixIndex.build(str(tmp_path), **{**given, "related": 0})
    found = PRINTS.get(name, "none")
    with pytest.raises(UserError, match=f"{name} {found}, but {name} new.*index stage again"):
        PrefixIndex.load(str(tmp_path), expect={**PRINTS, name: "new"})


@pytest.mark.parametrize("name", ["index.json", "queries.txt", "vectors.npy", "starts.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_missing_and_cut_files_are_named(given, tmp_path, name, damage):
    PrefixIndex.build(str(tmp_path), **{**given, "related": 0})
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = name if damage == "missing" else "damaged"
    with pytest.raises(UserError, match=f"{message}.*index stage"):
        PrefixIndex.load(str(tmp_path))


def test_an_array_of_another_shape_is_damage(given, tmp_path):
    PrefixIndex.build(str(tmp_path), **{**given, "related": 0})
    np.save(tmp_path / "codes.npy", np.zeros(3, np.uint16))
    with pytest.raises(UserError, match="codes.npy: expected uint16"):
        PrefixIndex.load(str(tmp_path))


def test_a_failed_build_leaves_the_old_index_and_other_files(given, tmp_path):
    (tmp_path / "_manifest.json").write_text("{}")
    PrefixIndex.build(str(tmp_path), **given)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    vectors = given["prefix_vectors"].copy()
    vectors[-1] = np.nan
    with pytest.raises(UserError, match="prefix_vectors, row 59"):
        PrefixIndex.build(str(tmp_path), **{**given, "prefix_vectors": vectors})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    PrefixIndex.build(str(tmp_path), **{**given, "related": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)
    assert len(PrefixIndex.load(str(tmp_path))) == 300


def test_a_build_killed_while_moving_leaves_no_index(given, tmp_path, monkeypatch):
    PrefixIndex.build(str(tmp_path), **{**given, "related": 0})
    replace, moved = os.replace, []

    def killed(source, target):
        if os.path.dirname(target) == str(tmp_path):
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(index_files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        PrefixIndex.build(str(tmp_path), **{**given, "related": 0})
    with pytest.raises(UserError, match="index.json"):
        PrefixIndex.load(str(tmp_path))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"queries": ["b", "a"] + ["c"] * 298}, "queries, row 1.*byte order"),
        ({"queries": ["b"] * 300}, "queries, row 1.*each text once"),
        ({"prefixes": ["a\nb"] + ["c"] * 59}, "prefixes, row 0.*one line"),
        ({"embeddings": np.zeros((7, D))}, "embeddings: expected one row for each of 300"),
        ({"ids": np.zeros((7, 4), int)}, "ids: expected one row"),
        ({"ids": np.full((300, 4), 6)}, "ids, row 0.*from 0 to 5"),
        ({"ids": np.zeros((300, 3), int)}, "ids of shape"),
        ({"prefix_vectors": np.zeros((7, D))}, "prefix_vectors: expected one row"),
        ({"pair_offsets": np.array([0, 1])}, "pair_offsets"),
        ({"vectors": "int4"}, "vectors='int4'"),
        ({"queries": [], "embeddings": np.zeros((0, D)), "ids": np.zeros((0, 4), int)}, "none"),
    ],
)
def test_inputs_that_do_not_fit_are_named(given, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        PrefixIndex.build(str(tmp_path), **{**given, **wrong})
    assert not os.listdir(tmp_path)


def test_pairs_of_unknown_queries_are_named(given, tmp_path):
    numbers = given["pair_queries"].copy()
    numbers[3] = 300
    with pytest.raises(UserError, match="pair_queries: expected row numbers from 0 to 299"):
        PrefixIndex.build(str(tmp_path), **{**given, "pair_queries": numbers})


def test_bytes_per_query_counts_vectors_tree_and_texts(index):
    # 12 + 4 bytes of vector, 8 of rows and places, at most 14 a level, text and its offset, 5
    # similar queries.
    assert 44 < index.bytes_per_query < 44 + 4 * 14 + 12 + 9
