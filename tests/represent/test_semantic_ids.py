"""Looking ids up against a scan, moving collisions against a slow loop, and the whole stage."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.represent import semantic_ids
from onesug_jax.represent.quantiser import Quantiser
from onesug_jax.represent.rqvae import RqVaeConfig
from onesug_jax.represent.semantic_ids import SemanticIds, quantize, resolve_collisions
from onesug_jax.train.mesh import make_mesh
from onesug_jax.train.optimizer import make_optimizer

CONFIG = RqVaeConfig(levels=2, codes=16, latent=6, hidden=(16,), kmeans_iterations=3)


def clustered(count=400, width=8, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, width))
    e = centres[rng.integers(20, size=count)] + 0.3 * rng.standard_normal((count, width))
    return (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def table():
    """(ids, counts): 600 queries on at most 5^3 ids, many counts equal."""
    rng = np.random.default_rng(1)
    return rng.integers(5, size=(600, 3)).astype(np.uint16), rng.integers(1, 6, size=600)


def scan(ids, counts, beginning) -> list[int]:
    n = len(beginning)
    found = [i for i in range(len(ids)) if tuple(ids[i][:n].tolist()) == tuple(beginning)]
    return sorted(found, key=lambda i: (tuple(ids[i].tolist()), -counts[i], i))


def test_numbers_are_those_a_scan_finds(table):
    found = SemanticIds.build(*table, codes=5)
    asked = {tuple(row[:n].tolist()) for row in table[0][:40] for n in range(4)}
    asked |= {(4, 4, 4), (0,), (0, 0), ()}
    for beginning in asked:
        assert found.numbers(beginning).tolist() == scan(*table, beginning)
    assert found.of(7) == tuple(table[0][7].tolist())
    assert len(found) == 600


def test_ids_of_all_64_bits_are_found():
    ids = np.array([[65535] * 4, [0] * 4, [65535, 0, 0, 1]], np.uint16)
    found = SemanticIds.build(ids, np.ones(3), codes=65536)
    assert found.numbers([65535]).tolist() == [2, 0]
    assert found.numbers([65535] * 4).tolist() == [0]
    assert found.numbers([1]).tolist() == []
    with pytest.raises(UserError, match="5 levels of 65536 codes need 80 bits"):
        SemanticIds.build(np.zeros((1, 5), np.uint16), np.ones(1), codes=65536)


def test_collisions_are_the_queries_with_company(table):
    ids, counts = table
    sizes = Counter(map(tuple, ids.tolist()))
    alone = sum(size for size in sizes.values() if size == 1)
    for rows in (slice(None), slice(0, 60)):
        sizes = Counter(map(tuple, ids[rows].tolist()))
        alone = sum(size for size in sizes.values() if size == 1)
        share = SemanticIds.build(ids[rows], counts[rows], codes=5).collisions()
        assert share == pytest.approx(1 - alone / len(ids[rows]))


def test_saved_and_opened_by_memory_map(table, tmp_path):
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


def test_refuses_ids_that_cannot_be(table):
    ids, counts = table
    with pytest.raises(UserError, match=r"600, 3.*599 counts"):
        SemanticIds.build(ids, counts[1:], codes=5)
    with pytest.raises(UserError, match="expected codes below 4"):
        SemanticIds.build(ids, counts, codes=4)
    found = SemanticIds.build(ids, counts, codes=5)
    for wrong in ([5], [-1], [0, 0, 0, 0]):
        with pytest.raises(UserError, match="at most 3 codes from 0 to 4"):
            found.numbers(wrong)


def slow_resolve(ids, counts, latents, codebooks):
    """The rule, read aloud, one query after another."""
    new = [tuple(row) for row in ids.tolist()]
    taken = set(new)
    best = {}
    for i in sorted(range(len(ids)), key=lambda i: (-counts[i], i)):
        best.setdefault(new[i], i)
    movers = [i for i in range(len(ids)) if best[new[i]] != i]
    for i in sorted(movers, key=lambda i: (-counts[i], i)):
        parent = new[i][:-1]
        rest = latents[i] - sum(codebooks[level][code] for level, code in enumerate(parent))
        order = np.argsort(((rest - codebooks[-1]) ** 2).sum(1), kind="stable")
        free = [int(code) for code in order if (*parent, int(code)) not in taken]
        if free:
            new[i] = (*parent, free[0])
            taken.add(new[i])
    return np.array(new)


@pytest.mark.parametrize("block", [8192, 7])
def test_moving_follows_the_rule(monkeypatch, block):
    monkeypatch.setattr(semantic_ids, "_MOVERS", block)
    rng = np.random.default_rng(5)
    # 150 queries under each parent of 12 codes: some parents run full, others do not.
    codebooks = rng.standard_normal((2, 12, 4)).astype(np.float32)
    embeddings = rng.standard_normal((160, 4)).astype(np.float32)
    counts = rng.integers(1, 5, size=160)
    quantiser = Quantiser(codebooks)
    ids = quantiser.codes(embeddings)
    new = resolve_collisions(ids, counts, embeddings, quantiser)
    expected = slow_resolve(ids, counts, embeddings.astype(np.float64), codebooks)
    np.testing.assert_array_equal(new, expected)
    before, after = (SemanticIds.build(x, counts, 12).collisions() for x in (ids, new))
    assert 0 < after < before
    np.testing.assert_array_equal(new[:, :-1], ids[:, :-1])


def test_equal_queries_part_until_there_is_no_room():
    quantiser = Quantiser(np.arange(4, dtype=np.float32).reshape(1, 4, 1))
    embeddings = np.full((6, 1), 2.2, np.float32)
    ids = quantiser.codes(embeddings)
    counts = np.array([1, 1, 9, 5, 1, 2])
    new = resolve_collisions(ids, counts, embeddings, quantiser)
    assert new[:, 0].tolist() == [0, 2, 2, 3, 2, 1]
    assert SemanticIds.build(new, counts, 4).numbers([2]).tolist() == [2, 1, 4]


def run(embeddings, counts, out, **more):
    steps = 6
    settings = {
        "mesh": make_mesh(1, devices=jax.devices()[:1]),
        "optimizer": make_optimizer("adamw", 1e-3, steps=steps, decay="cosine"),
        "seed": 3,
        "encoder_fingerprint": "abc",
        "config": CONFIG,
        "steps": steps,
        "batch_size": 32,
        **more,
    }
    return quantize(embeddings, counts, str(out), **settings)


@pytest.mark.parametrize("method", ["rqvae", "rq_kmeans"])
def test_the_report_tells_what_lies_in_the_folder(tmp_path, capsys, method):
    embeddings = clustered()
    counts = np.random.default_rng(0).integers(1, 9, size=400)
    report = run(embeddings, counts, tmp_path / "a", method=method)
    assert json.loads((tmp_path / "a" / "ids_report.json").read_text()) == report
    quantiser = Quantiser.load(str(tmp_path / "a"), expect_encoder="abc")
    found = SemanticIds.load(str(tmp_path / "a"))
    plain = quantiser.codes(embeddings)
    back = quantiser.decode(quantiser.reconstruct(plain))
    cosine = (back * embeddings).sum(1) / np.linalg.norm(back, axis=1)
    assert report["reconstruction_error"] == pytest.approx(
        ((back - embeddings) ** 2).sum(1).mean(), rel=1e-4
    )
    assert report["mean_cosine"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert report["shared_before"] == SemanticIds.build(plain, counts, 16).collisions() > 0
    assert report["shared_after"] == found.collisions() < report["shared_before"]
    assert report["moved"] == (np.asarray(found.ids) != plain).any(1).sum()
    assert report["distinct_ids"] == len({found.of(i) for i in range(400)})
    assert report["quantiser"] == quantiser.fingerprint
    first = np.bincount(plain[:, 0], minlength=16) / 400
    entropy = -sum(p * np.log(p) for p in first if p)
    assert report["levels"][0]["perplexity"] == pytest.approx(np.exp(entropy))
    assert report["levels"][0]["used"] == np.count_nonzero(first)
    assert "share an id with another query" in capsys.readouterr().out
    again = run(embeddings, counts, tmp_path / "b", method=method)
    assert again == report
    np.testing.assert_array_equal(SemanticIds.load(str(tmp_path / "b")).ids, found.ids)


def test_without_resolving_ids_are_the_quantisers(tmp_path):
    embeddings, counts = clustered(), np.ones(400, np.int64)
    report = run(embeddings, counts, tmp_path, method="rq_kmeans", resolve=False)
    assert report["shared_after"] == report["shared_before"] > 0
    plain = Quantiser.load(str(tmp_path)).codes(embeddings)
    np.testing.assert_array_equal(SemanticIds.load(str(tmp_path)).ids, plain)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_queries_than_codes(tmp_path, capsys, count):
    embeddings = clustered(count)
    report = run(embeddings, np.ones(count, np.int64), tmp_path)
    assert f"{count} queries for 16 codes a level" in capsys.readouterr().out
    assert report["shared_after"] == 0
    assert report["distinct_ids"] == count
    assert all(1 <= row["used"] <= count for row in report["levels"])
    assert report["mean_cosine"] > 0.9


def test_refuses_what_it_cannot_use(tmp_path):
    embeddings, counts = clustered(), np.ones(400, np.int64)
    with pytest.raises(UserError, match="method='kmeans'.*rqvae, rq_kmeans"):
        run(embeddings, counts, tmp_path, method="kmeans")
    with pytest.raises(UserError, match=r"\[400, 8\] and counts \[399\]"):
        run(embeddings, counts[1:], tmp_path)
    with pytest.raises(UserError, match="N >= 1"):
        run(embeddings[:0], counts[:0], tmp_path)
    for value, told in ((0.0, "length 0"), (np.nan, "length nan")):
        wrong = embeddings.copy()
        wrong[17] = value
        with pytest.raises(UserError, match=f"query 17 has {told}"):
            run(wrong, counts, tmp_path)
