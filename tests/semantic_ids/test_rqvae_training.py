"""Training of the RQ-VAE: initial parameters, batches, and learning."""

import functools
import json

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids import rqvae, rqvae_training
from onesug_jax.semantic_ids.rqvae import RqVaeConfig
from onesug_jax.train.history import read_history
from onesug_jax.train.optimizer import make_optimizer
from tests.semantic_ids import rqvae_toy

encode = jax.jit(rqvae.encode, static_argnums=2)
decode = jax.jit(rqvae.decode, static_argnums=2)
quantise = jax.jit(rqvae.quantise)

# Two principal directions cannot separate these clusters, so there is something to learn.
NARROW = RqVaeConfig(levels=3, codes=8, latent=2, hidden=(32,), kmeans_iterations=3)


@pytest.mark.long
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_initial_networks_project_on_principal_directions(activation):
    config = RqVaeConfig(2, 8, 6, (16, 13), activation, kmeans_iterations=1)
    params, embeddings = rqvae_toy.start(config), rqvae_toy.clustered()
    latents = encode(params, embeddings, activation)
    back = decode(params, latents, activation)
    _, _, directions = np.linalg.svd(embeddings, full_matrices=False)
    basis = directions[: config.rank(rqvae_toy.WIDTH)]
    assert len(basis) == 6
    np.testing.assert_allclose(back, embeddings @ basis.T @ basis, atol=1e-5)
    # Every level of the initial codebooks reduces the error.
    codes, residuals = quantise(latents, params["codebooks"]["codes"])
    errors = np.square(residuals).sum((1, 2))
    assert (errors[1:] < 0.75 * errors[:-1]).all()


@pytest.mark.long
def test_weight_decay_does_not_change_the_codebooks():
    plain, decayed = rqvae_toy.run(updates=1), rqvae_toy.run(updates=1, weight_decay=10.0)
    for name in ("codes", "share", "mass"):
        np.testing.assert_allclose(
            plain[0]["codebooks"][name], decayed[0]["codebooks"][name], rtol=1e-6
        )
    kernels = [params["encoder"]["layer_0"]["kernel"] for params, _ in (plain, decayed)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    assert decayed[1]["learning_rate"] == pytest.approx(0.01)


def test_every_epoch_holds_every_query_once():
    rows = np.arange(10, dtype=np.float32)[:, None]
    make = functools.partial(rqvae_training.batches, rows, seed=3, slots=2)
    at = make(4, process_rows=np.arange(4))
    seen = np.concatenate([at(step)["embedding"][:, 0] for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    assert at(1)["slot"].tolist() == [0, 1, -1, -1]
    part = make(4, process_rows=np.array([1, 3]))
    for step in (3, 2):
        for name, rows in at(step).items():
            np.testing.assert_array_equal(part(step)[name], rows[[1, 3]])
    many = make(25, process_rows=np.arange(25))(0)["embedding"][:, 0]  # fewer queries than a batch
    assert set(np.bincount(many.astype(int)).tolist()) == {2, 3}


def train(folder, **more):
    settings = {"steps": 100, "batch_size": 64, "seed": 2, "encoder": "abc", **more}
    return rqvae_training.train_rqvae(
        rqvae_toy.clustered(),
        folder,
        config=NARROW,
        mesh=rqvae_toy.mesh_of(1),
        optimizer=make_optimizer("adamw", 1e-2, decay="cosine", steps=100),
        **settings,
    )


@pytest.mark.long
def test_training_reduces_the_initial_error_and_reports_the_use_of_codes(tmp_path):
    quantiser = train(tmp_path)
    assert (quantiser.encoder, quantiser.levels, quantiser.size) == ("abc", 3, 8)
    embeddings = rqvae_toy.clustered()

    def error(quantiser):
        back = quantiser.decode(quantiser.reconstruct(quantiser.codes(embeddings)))
        return ((back - embeddings) ** 2).sum(1).mean()

    initial = rqvae_training.as_quantiser(rqvae_toy.start(NARROW), NARROW)
    assert error(quantiser) < 0.9 * error(initial)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    metrics = [row for row in rows if row["kind"] == "evaluate"][-1]
    ids = quantiser.codes(embeddings)
    assert metrics["reconstruction"] == pytest.approx(error(quantiser), rel=1e-3)
    for level in range(3):
        share = np.bincount(ids[:, level], minlength=8) / 300
        entropy = -sum(p * np.log(p) for p in share if p)
        assert metrics[f"usage_{level + 1}"] == pytest.approx((share > 0).mean())
        assert metrics[f"perplexity_{level + 1}"] == pytest.approx(np.exp(entropy), rel=1e-3)
    metrics = next(row for row in rows if row["kind"] == "train")
    assert {"reconstruction", "cosine", "commitment"} <= metrics.keys()


@pytest.mark.long
def test_training_resumes_with_another_seed_but_not_with_another_encoder(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"encoder 'abc' \(now 'abd'\).*--restart=quantize"):
        train(tmp_path, steps=4, encoder="abd")
    train(tmp_path, steps=4, seed=3)
    first, second = read_history(tmp_path)
    assert first["changes"]["learning_rate"] == [None, 0.01]
    assert (second["step"], second["changes"]) == (2, {"steps": [2, 4], "seed": [2, 3]})
