"""The RQ-VAE: its gradients, its running means, and equal results on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids import rqvae, rqvae_training
from onesug_jax.semantic_ids.rqvae import RqVaeConfig
from tests.semantic_ids import rqvae_toy

encode = jax.jit(rqvae.encode, static_argnums=2)
decode = jax.jit(rqvae.decode, static_argnums=2)
quantise = jax.jit(rqvae.quantise)
follow = jax.jit(rqvae.follow, static_argnums=3)


@pytest.mark.long
def test_gradients_pass_the_codes_straight_through():
    stage = rqvae.rqvae_stage(RqVaeConfig(3, 8, 6, (16,), commitment=0.0), rqvae_toy.WIDTH, 16)
    params, batch = rqvae_toy.start(), rqvae_toy.batch_at()(0)

    def error(latent_after):
        decoded = decode(params, latent_after, "relu")
        return jnp.sum((batch["embedding"] - decoded) ** 2)

    latents = encode(params, batch["embedding"], "relu")
    _, residuals = quantise(latents, params["codebooks"]["codes"])
    at_codes = jax.jit(jax.grad(error))(latents - residuals[-1])
    grads = jax.jit(jax.grad(lambda p: stage.loss_fn(p, batch, jax.random.key(0))[0]))(params)
    # The last bias of the encoder adds to every latent alike.
    np.testing.assert_allclose(
        grads["encoder"]["layer_1"]["bias"], at_codes.sum(0), rtol=1e-4, atol=1e-5
    )
    assert np.abs(at_codes).max() > 1e-3
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["codebooks"]))


@pytest.mark.long
def test_the_sums_are_those_of_a_loop():
    stage = rqvae.rqvae_stage(rqvae_toy.CONFIG, rqvae_toy.WIDTH, 16)
    params, batch = rqvae_toy.start(), rqvae_toy.batch_at()(3)
    total, weight, sums = jax.jit(stage.loss_fn)(params, batch, jax.random.key(0))
    quantiser = rqvae_training.as_quantiser(params, rqvae_toy.CONFIG)
    ids = quantiser.codes(batch["embedding"])
    latents = quantiser.latents(batch["embedding"])
    counts, code_sums = np.zeros((3, 8)), np.zeros((3, 8, 6))
    candidates, commitment = np.zeros((3, 8, 6)), 0.0
    for row in range(16):
        residual = latents[row].astype(np.float64)
        for level, code in enumerate(ids[row]):
            counts[level, code] += 1
            code_sums[level, code] += residual
            if batch["slot"][row] >= 0:
                candidates[level, batch["slot"][row]] += residual
            residual = residual - quantiser.codebooks[level, code]
            commitment += (residual**2).sum()
    decoded = quantiser.decode(quantiser.reconstruct(ids))
    error = ((decoded - batch["embedding"]) ** 2).sum()
    assert weight == 16
    assert sums["reconstruction"] == pytest.approx(error, rel=1e-4)
    assert sums["commitment"] == pytest.approx(commitment, rel=1e-4)
    assert total == pytest.approx(error + 0.25 * commitment, rel=1e-4)
    np.testing.assert_array_equal(sums["code_counts"], counts)
    np.testing.assert_allclose(sums["code_sums"], code_sums, atol=1e-5)
    np.testing.assert_allclose(sums["candidates"], candidates, atol=1e-5)


def test_the_commitment_pulls_latents_to_their_codes():
    params, batch = rqvae_toy.start(), rqvae_toy.batch_at()(0)

    def bias_gradient(commitment):
        stage = rqvae.rqvae_stage(
            RqVaeConfig(3, 8, 6, (16,), commitment=commitment), rqvae_toy.WIDTH, 16
        )
        grads = jax.jit(jax.grad(lambda p: stage.loss_fn(p, batch, jax.random.key(0))[0]))(params)
        return np.asarray(grads["encoder"]["layer_1"]["bias"])

    latents = encode(params, batch["embedding"], "relu")
    _, residuals = quantise(latents, params["codebooks"]["codes"])
    pull = 2 * np.asarray(residuals)[1:].sum((0, 1))
    np.testing.assert_allclose(bias_gradient(1.0) - bias_gradient(0.0), pull, rtol=1e-3, atol=1e-4)


def codebooks_and_sums(slots=4):
    rng = np.random.default_rng(4)
    share = rng.dirichlet(np.full(8, 5.0), size=2).astype(np.float32)
    share[0, [2, 5]] = 1e-4  # unused
    codes = rng.standard_normal((2, 8, 3)).astype(np.float32)
    counts = rng.integers(1, 9, size=(2, 8)).astype(np.float32)
    counts[1] *= counts[0].sum() / counts[1].sum()
    code_sums = rng.standard_normal((2, 8, 3)).astype(np.float32)
    counts[0, [2, 5]] = code_sums[0, [2, 5]] = 0
    sums = {
        "code_counts": counts,
        "code_sums": code_sums,
        "candidates": rng.standard_normal((2, slots, 3)).astype(np.float32),
    }
    return {"codes": codes, "share": share, "mass": codes * share[..., None]}, sums


def test_codes_follow_the_running_mean_and_unused_ones_move():
    config = RqVaeConfig(2, 8, 3, (4,), decay=0.9)
    before, sums = codebooks_and_sums()
    after = jax.device_get(follow(before, sums, jax.random.key(0), config))
    size = sums["code_counts"][0].sum()
    moved = np.zeros((2, 8), bool)
    moved[0, [2, 5]] = True
    share = 0.9 * before["share"] + 0.1 * sums["code_counts"] / size
    mass = 0.9 * before["mass"] + 0.1 * sums["code_sums"] / size
    np.testing.assert_allclose(after["share"][~moved], share[~moved], rtol=1e-5)
    np.testing.assert_allclose(
        after["codes"][~moved], (mass / share[..., None])[~moved], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(after["share"][moved], 1 / 8)
    # The directions of two different candidates, with the length of the level's codes.
    directions = sums["candidates"][0] / np.linalg.norm(sums["candidates"][0], axis=1)[:, None]
    found = (after["codes"][moved] @ directions.T).argmax(1)
    assert len(set(found.tolist())) == 2
    squares = np.square(before["codes"][0]).sum(1)
    length = np.sqrt((squares * before["share"][0]).sum() / before["share"][0].sum())
    np.testing.assert_allclose(after["codes"][moved], directions[found] * length, rtol=1e-4)


def test_the_key_assigns_candidates_and_slots_limit_the_moves():
    config = RqVaeConfig(2, 8, 3, (4,), decay=0.9)
    before, sums = codebooks_and_sums(slots=4)
    moves = {
        np.asarray(follow(before, sums, jax.random.key(k), config)["codes"][0, 2]).tobytes()
        for k in range(12)
    }
    assert 1 < len(moves) <= 4
    sums["candidates"] = sums["candidates"][:, :1]
    after = follow(before, sums, jax.random.key(0), config)
    assert after["share"][0, 2] == 1 / 8
    np.testing.assert_allclose(after["share"][0, 5], 0.9e-4, rtol=1e-4)
    np.testing.assert_allclose(after["codes"][0, 5], before["codes"][0, 5], rtol=1e-4)


def test_a_code_without_any_share_does_not_move():
    config = RqVaeConfig(2, 8, 3, (4,), revive_below=0.0)
    before, sums = codebooks_and_sums()
    before["share"][0, 2] = before["mass"][0, 2] = 0
    after = follow(before, sums, jax.random.key(0), config)
    np.testing.assert_array_equal(after["codes"][0, 2], before["codes"][0, 2])


@pytest.mark.long
@pytest.mark.eight_devices
@pytest.mark.parametrize("other", [{"devices": 8}, {"devices": 2, "accumulation": 4}], ids=str)
def test_meshes_and_microbatches_agree_with_one_device(other):
    # The order of sums differs; the running means keep differences small.
    expected, actual = (jax.tree.leaves(rqvae_toy.run(**options)) for options in ({}, other))
    for one, many in zip(expected, actual, strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codes": 1}, "2 to 65,536 codes"),
        ({"hidden": (0,)}, "sizes of at least 1"),
        ({"activation": "tanh"}, "relu, gelu"),
        ({"decay": 1.0}, r"decay=1.0.*\[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RqVaeConfig(**settings)
