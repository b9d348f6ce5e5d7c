"""`quantize`: its report, its files, and its errors."""

import json

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids.ids import SemanticIds
from onesug_jax.semantic_ids.quantiser import Quantiser
from onesug_jax.semantic_ids.quantize import quantize
from onesug_jax.semantic_ids.rqvae import RqVaeConfig
from onesug_jax.train.mesh import make_mesh
from onesug_jax.train.optimizer import make_optimizer

CONFIG = RqVaeConfig(levels=2, codes=16, latent=6, hidden=(16,), kmeans_iterations=3)


def clustered(count=400, width=8, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, width))
    e = centres[rng.integers(20, size=count)] + 0.3 * rng.standard_normal((count, width))
    return (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)


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


@pytest.mark.long
@pytest.mark.parametrize("method", ["rqvae", "rq_kmeans"])
def test_the_report_matches_the_files_of_the_folder(tmp_path, capsys, method):
    embeddings = clustered()
    counts = np.random.default_rng(0).integers(1, 9, size=400)
    report = run(embeddings, counts, tmp_path / "a", method=method)
    assert json.loads((tmp_path / "a" / "ids_report.json").read_text()) == report
    quantiser = Quantiser.load(str(tmp_path / "a"), expect_encoder="abc")
    ids = SemanticIds.load(str(tmp_path / "a"))
    plain = quantiser.codes(embeddings)
    back = quantiser.decode(quantiser.reconstruct(plain))
    cosine = (back * embeddings).sum(1) / np.linalg.norm(back, axis=1)
    assert report["reconstruction_error"] == pytest.approx(
        ((back - embeddings) ** 2).sum(1).mean(), rel=1e-4
    )
    assert report["mean_cosine"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert report["shared_before"] == SemanticIds.build(plain, counts, 16).collisions() > 0
    assert report["shared_after"] == ids.collisions() < report["shared_before"]
    assert report["moved"] == (np.asarray(ids.ids) != plain).any(1).sum()
    assert report["distinct_ids"] == len({ids.of(i) for i in range(400)})
    assert report["quantiser"] == quantiser.fingerprint
    first = np.bincount(plain[:, 0], minlength=16) / 400
    entropy = -sum(p * np.log(p) for p in first if p)
    assert report["levels"][0]["perplexity"] == pytest.approx(np.exp(entropy))
    assert report["levels"][0]["used"] == np.count_nonzero(first)
    assert "share an id with another query" in capsys.readouterr().out
    again = run(embeddings, counts, tmp_path / "b", method=method)
    assert again == report
    np.testing.assert_array_equal(SemanticIds.load(str(tmp_path / "b")).ids, ids.ids)


def test_unresolved_ids_are_those_of_the_quantiser(tmp_path):
    embeddings, counts = clustered(), np.ones(400, np.int64)
    report = run(embeddings, counts, tmp_path, method="rq_kmeans", resolve=False)
    assert report["shared_after"] == report["shared_before"] > 0
    plain = Quantiser.load(str(tmp_path)).codes(embeddings)
    np.testing.assert_array_equal(SemanticIds.load(str(tmp_path)).ids, plain)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 3])
def test_fewer_queries_than_codes(tmp_path, capsys, count):
    embeddings = clustered(count)
    report = run(embeddings, np.ones(count, np.int64), tmp_path)
    assert f"{count} queries for 16 codes a level" in capsys.readouterr().out
    assert report["shared_after"] == 0
    assert report["distinct_ids"] == count
    assert all(1 <= row["used"] <= count for row in report["levels"])
    assert report["mean_cosine"] > 0.9


def test_unusable_inputs_are_refused(tmp_path):
    embeddings, counts = clustered(), np.ones(400, np.int64)
    with pytest.raises(UserError, match="method='kmeans'.*rqvae, rq_kmeans"):
        run(embeddings, counts, tmp_path, method="kmeans")
    with pytest.raises(UserError, match=r"\[400, 8\] and counts \[399\]"):
        run(embeddings, counts[1:], tmp_path)
    with pytest.raises(UserError, match="N >= 1"):
        run(embeddings[:0], counts[:0], tmp_path)
    for value, message in ((0.0, "length 0"), (np.nan, "length nan")):
        wrong = embeddings.copy()
        wrong[17] = value
        with pytest.raises(UserError, match=f"query 17 has {message}"):
            run(wrong, counts, tmp_path)
