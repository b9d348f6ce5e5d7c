"""The tree of ids against dictionaries and loops."""

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.retrieval.id_tree import IdTree, expected_codewords, largest, ranges

LEVELS, CODES, D = 3, 5, 4


@pytest.fixture(scope="module", params=[1, 2, 40, 400])
def filed(request):
    rng = np.random.default_rng(request.param)
    ids = rng.integers(0, CODES, (request.param, LEVELS)).astype(np.uint16)
    codebooks = rng.normal(size=(LEVELS, CODES, D)).astype(np.float32)
    return ids, codebooks, IdTree.build(ids, codebooks)


def below(ids: np.ndarray, beginning: tuple) -> list[int]:
    """Numbers of the queries whose id begins with `beginning`."""
    return [i for i, own in enumerate(ids.tolist()) if tuple(own[: len(beginning)]) == beginning]


def test_nodes_are_the_beginnings_of_the_ids(filed):
    ids, codebooks, tree = filed
    paths = {(): range(len(tree.levels[0].codes))}
    for depth, level in enumerate(tree.levels, 1):
        found = {
            (*path, int(level.codes[node])): node for path, nodes in paths.items() for node in nodes
        }
        assert sorted(found) == sorted({tuple(own[:depth]) for own in ids.tolist()})
        assert list(found.values()) == list(range(len(level.codes)))
        for path, node in found.items():
            held = tree.rows[level.starts[node] : level.starts[node + 1]]
            assert held.tolist() == sorted(below(ids, path), key=lambda i: (ids[i].tolist(), i))
            total = sum(codebooks[at, code].astype(np.float64) for at, code in enumerate(path))
            assert level.norms[node] == pytest.approx(total @ total, rel=1e-5)
        paths = {
            path: range(level.children[node], level.children[node + 1])
            for path, node in found.items()
        }
    assert tree.nodes() == [len(level.codes) for level in tree.levels]


def beam(ids, codebooks, vector, probes, norm_weight, breadth=None) -> list[set[tuple]]:
    """Beginnings retained at each level, by sorting all of them."""
    retained, levels = {()}, []
    for depth, keep in enumerate(probes, 1):
        here = {tuple(own[:depth]) for own in ids.tolist() if tuple(own[: depth - 1]) in retained}

        def score(path):
            total = sum(codebooks[at, code].astype(np.float64) for at, code in enumerate(path))
            return vector @ total - norm_weight * (total @ total)

        retained = sorted(here, key=score, reverse=True)[:keep]
        children = len(
            {tuple(own[: depth + 1]) for own in ids.tolist() if tuple(own[:depth]) in retained}
        )
        if breadth is not None and depth < len(probes) and children > breadth:
            retained = retained[: max(len(retained) * breadth // children, 1)]
        retained = set(retained)
        levels.append(retained)
    return levels


@pytest.mark.parametrize("probes", [(1, 1, 1), (2, 3, 4), (4, 2, 3), (5, 25, 125)])
@pytest.mark.parametrize("norm_weight", [0.5, 0.1])
@pytest.mark.parametrize("least", [1, 7, 60, 10_000])
@pytest.mark.parametrize("breadth", [None, 1, 9])
def test_positions_are_those_of_a_beam_by_hand(filed, probes, norm_weight, least, breadth):
    ids, codebooks, tree = filed
    rng = np.random.default_rng(5)
    for vector in rng.normal(size=(4, D)).astype(np.float32):
        dots = codebooks @ vector
        steps: list[list[int]] = []
        seen: set[int] = set()

        def add(paths, steps=steps, seen=seen):
            new = [i for path in paths for i in below(ids, path) if i not in seen]
            steps.append(sorted(new))
            seen.update(new)

        levels = beam(ids, codebooks, vector, probes, norm_weight, breadth)
        for paths in reversed(levels):
            if len(seen) < least:
                add(paths)
        every = {tuple(own[:1]) for own in ids.tolist()}
        others = every - levels[0]
        while len(seen) < least and others:
            rest = ids[[i for path in others for i in below(ids, path)]]
            best = beam(rest, codebooks, vector, (1,), norm_weight)[0]
            add(best)
            others -= best
        options = {"norm_weight": norm_weight, "breadth": breadth}
        positions, widening = tree.gather(dots, probes, least, buckets=True, **options)
        found = [sorted(tree.rows[positions[widening == w]].tolist()) for w in range(len(steps))]
        assert found == steps
        assert len(positions) == len(seen) == len(set(positions.tolist()))
        assert (np.diff(widening) >= 0).all()
        plain, none = tree.gather(dots, probes, least, **options)
        assert sorted(plain.tolist()) == sorted(positions.tolist())
        assert not len(none)


def test_flat_arrays_give_the_tree_back(filed):
    _, _, tree = filed
    again = IdTree.from_arrays(tree.arrays(), tree.nodes())
    assert again.nodes() == tree.nodes()
    for one, other in zip(tree.levels, again.levels, strict=True):
        for name in ("starts", "children", "codes", "norms"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def test_expected_codewords_are_means_of_residuals():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, CODES - 1, (200, LEVELS))
    vectors = rng.normal(size=(200, D))
    words = expected_codewords(ids, vectors, LEVELS, CODES, block=33)
    left = vectors.copy()
    for level in range(LEVELS):
        for code in range(CODES - 1):
            mean = left[ids[:, level] == code].mean(0)
            np.testing.assert_allclose(words[level, code], mean, atol=1e-5)
        left -= words[level][ids[:, level]]
    assert not words[:, CODES - 1].any()


@pytest.mark.parametrize("keep", [1, 2, 5, 9, 30])
def test_largest_keeps_the_first_of_equals(keep):
    scores = np.random.default_rng(keep).integers(0, 4, 20).astype(np.float32)
    expected = sorted(np.argsort(-scores, kind="stable")[:keep].tolist())
    assert largest(scores, keep).tolist() == expected


def test_ranges_are_concatenated():
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.zeros(0, int), np.zeros(0, int)).tolist() == []


@pytest.mark.parametrize(
    "ids, found",
    [
        (np.zeros((3, 2), np.uint16), "shape"),
        (np.zeros((3, 3)), "float64"),
        (np.array([[0, 0, 0], [0, CODES, 0]]), r"row 1.*\[0, 5, 0\]"),
        (np.array([[0, -1, 0]]), "row 0"),
    ],
)
def test_ids_that_do_not_fit_are_named(ids, found):
    with pytest.raises(UserError, match=found):
        IdTree.build(ids, np.zeros((3, CODES, D), np.float32))
