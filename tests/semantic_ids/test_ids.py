"""Look-ups of ids against a scan, and the files of ids."""

from collections import Counter

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids import ids as semantic_ids
from onesug_jax.semantic_ids.ids import SemanticIds


@pytest.fixture(scope="module")
def table():
    """(ids, counts): 600 queries on at most 5^3 ids, many counts equal."""
    rng = np.random.default_rng(1)
    return rng.integers(5, size=(600, 3)).astype(np.uint16), rng.integers(1, 6, size=600)


def scan(ids, counts, beginning) -> list[int]:
    n = len(beginning)
    found = [i for i in range(len(ids)) if tuple(ids[i][:n].tolist()) == tuple(beginning)]
    return sorted(found, key=lambda i: (tuple(ids[i].tolist()), -counts[i], i))


def test_numbers_are_those_of_a_scan(table):
    ids = SemanticIds.build(*table, codes=5)
    beginnings = {tuple(row[:n].tolist()) for row in table[0][:40] for n in range(4)}
    beginnings |= {(4, 4, 4), (0,), (0, 0), ()}
    for beginning in beginnings:
        assert ids.numbers(beginning).tolist() == scan(*table, beginning)
    assert ids.of(7) == tuple(table[0][7].tolist())
    assert len(ids) == 600


def test_ids_of_all_64_bits_are_found():
    ids = np.array([[65535] * 4, [0] * 4, [65535, 0, 0, 1]], np.uint16)
    found = SemanticIds.build(ids, np.ones(3), codes=65536)
    assert found.numbers([65535]).tolist() == [2, 0]
    assert found.numbers([65535] * 4).tolist() == [0]
    assert found.numbers([1]).tolist() == []
    with pytest.raises(UserError, match="5 levels of 65536 codes need 80 bits"):
        SemanticIds.build(np.zeros((1, 5), np.uint16), np.ones(1), codes=65536)


def test_collisions_are_the_share_of_queries_that_share_an_id(table):
    ids, counts = table
    for rows in (slice(None), slice(0, 60)):
        sizes = Counter(map(tuple, ids[rows].tolist()))
        alone = sum(size for size in sizes.values() if size == 1)
        share = SemanticIds.build(ids[rows], counts[rows], codes=5).collisions()
        assert share == pytest.approx(1 - alone / len(ids[rows]))


def test_ids_are_saved_and_opened_by_memory_map(table, tmp_path):
    built = SemanticIds.build(*table, codes=5)
    built.save(str(tmp_path))
    found = SemanticIds.load(str(tmp_path))
    assert isinstance(found.ids, np.memmap)
    assert isinstance(found.keys, np.memmap)
    assert (found.codes, found.levels, len(found)) == (5, 3, 600)
    assert found.numbers([2, 1]).tolist() == built.numbers([2, 1]).tolist()
    np.save(tmp_path / semantic_ids.ORDER, built.order[:-1])
    with pytest.raises(UserError, match=r"damaged.*599"):
        SemanticIds.load(str(tmp_path))
    (tmp_path / semantic_ids.KEYS).unlink()
    with pytest.raises(UserError, match="keys.npy.*no such file"):
        SemanticIds.load(str(tmp_path))


def test_impossible_ids_are_refused(table):
    ids, counts = table
    with pytest.raises(UserError, match=r"600, 3.*599 counts"):
        SemanticIds.build(ids, counts[1:], codes=5)
    with pytest.raises(UserError, match="expected codes below 4"):
        SemanticIds.build(ids, counts, codes=4)
    found = SemanticIds.build(ids, counts, codes=5)
    for wrong in ([5], [-1], [0, 0, 0, 0]):
        with pytest.raises(UserError, match="at most 3 codes from 0 to 4"):
            found.numbers(wrong)
