"""The RQ-VAE: where it starts, what its gradients and running means are, and that meshes agree."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.represent import rqvae
from onesug_jax.represent.rqvae import RqVaeConfig
from onesug_jax.train import step as steps
from onesug_jax.train.mesh import global_batch, make_mesh
from onesug_jax.train.optimizer import make_optimizer

CONFIG = RqVaeConfig(levels=3, codes=8, latent=6, hidden=(16,), kmeans_iterations=3)
WIDTH = 10


@functools.cache
def clustered(count=300) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, WIDTH))
    e = centres[rng.integers(12, size=count)] + 0.4 * rng.standard_normal((count, WIDTH))
    return (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)


encode = jax.jit(rqvae.encode, static_argnums=2)
network = jax.jit(rqvae._network, static_argnums=2)
quantise = jax.jit(rqvae.quantise)
follow = jax.jit(rqvae.follow, static_argnums=3)


@functools.cache
def start(config=CONFIG):
    return jax.tree.map(np.asarray, rqvae.initial_params(config, clustered(), seed=0))


def batch_at(size=16, count=300, seed=1):
    return rqvae.batches(clustered(count), size, seed=seed, slots=min(size, 8), part=(0, 1))


def mesh_of(devices):
    return make_mesh(devices, devices=jax.devices()[:devices])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_starts_as_the_principal_directions(activation):
    config = RqVaeConfig(2, 8, 6, (16, 13), activation, kmeans_iterations=1)
    params, embeddings = start(config), clustered()
    latents = encode(params, embeddings, activation)
    back = network(params["decoder"], latents, activation)
    _, _, directions = np.linalg.svd(embeddings, full_matrices=False)
    kept = directions[: config.rank(WIDTH)]
    assert len(kept) == 6
    np.testing.assert_allclose(back, embeddings @ kept.T @ kept, atol=1e-5)
    # And the codebooks are of use at once: one code in eight, level by level.
    codes, residuals = quantise(latents, params["codebooks"]["codes"])
    errors = np.square(residuals).sum((1, 2))
    assert (errors[1:] < 0.75 * errors[:-1]).all()


def test_gradients_pass_the_codes_straight_through():
    stage = rqvae.rqvae_stage(RqVaeConfig(3, 8, 6, (16,), commitment=0.0), WIDTH, 16)
    params, batch = start(), batch_at()(0)

    def error(latent_after):
        decoded = network(params["decoder"], latent_after, "relu")
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


def test_the_sums_are_those_a_loop_finds():
    stage = rqvae.rqvae_stage(CONFIG, WIDTH, 16)
    params, batch = start(), batch_at()(3)
    total, weight, sums = jax.jit(stage.loss_fn)(params, batch, jax.random.key(0))
    quantiser = rqvae.as_quantiser(params, CONFIG)
    ids = quantiser.codes(batch["embedding"])
    latents = quantiser.latents(batch["embedding"])
    counts, code_sums = np.zeros((3, 8)), np.zeros((3, 8, 6))
    candidates, commitment = np.zeros((3, 8, 6)), 0.0
    for row in range(16):
        rest = latents[row].astype(np.float64)
        for level, code in enumerate(ids[row]):
            counts[level, code] += 1
            code_sums[level, code] += rest
            if batch["slot"][row] >= 0:
                candidates[level, batch["slot"][row]] += rest
            rest = rest - quantiser.codebooks[level, code]
            commitment += (rest**2).sum()
    back = quantiser.decode(quantiser.reconstruct(ids))
    error = ((back - batch["embedding"]) ** 2).sum()
    assert weight == 16
    assert sums["reconstruction"] == pytest.approx(error, rel=1e-4)
    assert sums["commitment"] == pytest.approx(commitment, rel=1e-4)
    assert total == pytest.approx(error + 0.25 * commitment, rel=1e-4)
    np.testing.assert_array_equal(sums["code_counts"], counts)
    np.testing.assert_allclose(sums["code_sums"], code_sums, atol=1e-5)
    np.testing.assert_allclose(sums["candidates"], candidates, atol=1e-5)


def test_the_commitment_pulls_latents_to_their_codes():
    params, batch = start(), batch_at()(0)

    def bias_gradient(commitment):
        stage = rqvae.rqvae_stage(RqVaeConfig(3, 8, 6, (16,), commitment=commitment), WIDTH, 16)
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
    # Two different candidates' directions, at the usual length of the level's codes.
    directions = sums["candidates"][0] / np.linalg.norm(sums["candidates"][0], axis=1)[:, None]
    found = (after["codes"][moved] @ directions.T).argmax(1)
    assert len(set(found.tolist())) == 2
    squares = np.square(before["codes"][0]).sum(1)
    length = np.sqrt((squares * before["share"][0]).sum() / before["share"][0].sum())
    np.testing.assert_allclose(after["codes"][moved], directions[found] * length, rtol=1e-4)


def test_the_key_decides_who_moves_where_and_slots_how_many():
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


def test_a_code_without_any_share_stays_where_it_is():
    config = RqVaeConfig(2, 8, 3, (4,), revive_below=0.0)
    before, sums = codebooks_and_sums()
    before["share"][0, 2] = before["mass"][0, 2] = 0
    after = follow(before, sums, jax.random.key(0), config)
    np.testing.assert_array_equal(after["codes"][0, 2], before["codes"][0, 2])


@functools.cache
def run(devices=1, accumulation=1, updates=3, weight_decay=0.0):
    stage, mesh = rqvae.rqvae_stage(CONFIG, WIDTH, 16), mesh_of(devices)
    optimizer = rqvae.spare_codebooks(make_optimizer("adamw", 0.01, weight_decay=weight_decay))
    layout = steps.shardings_of(steps.abstract_state(stage, optimizer, mesh))
    update = steps.make_train_step(stage, optimizer, mesh, layout, accumulation, 5)
    state = steps.init_state(stage, optimizer, mesh, 5, jax.device_put(start(), layout.params))
    for t in range(updates):
        state, metrics = update(state, global_batch(mesh, batch_at()(t)), None)
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize("other", [{"devices": 8}, {"devices": 2, "accumulation": 4}], ids=str)
def test_meshes_and_microbatches_agree_with_one_device(other):
    # Sums in another order; the running means keep differences small.
    for one, many in zip(jax.tree.leaves(run()), jax.tree.leaves(run(**other)), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-3, atol=1e-4)


def test_weight_decay_does_not_touch_the_codebooks():
    plain, decayed = run(updates=1), run(updates=1, weight_decay=10.0)
    for name in ("codes", "share", "mass"):
        np.testing.assert_allclose(
            plain[0]["codebooks"][name], decayed[0]["codebooks"][name], rtol=1e-6
        )
    kernels = [params["encoder"]["layer_0"]["kernel"] for params, _ in (plain, decayed)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    assert decayed[1]["learning_rate"] == pytest.approx(0.01)


def test_every_epoch_holds_every_query_once():
    rows = np.arange(10, dtype=np.float32)[:, None]
    make = functools.partial(rqvae.batches, rows, seed=3, slots=2)
    at = make(4, part=(0, 1))
    seen = np.concatenate([at(step)["embedding"][:, 0] for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    np.testing.assert_array_equal(make(4, part=(0, 1))(3)["embedding"], at(3)["embedding"])
    assert at(1)["slot"].tolist() == [0, 1, -1, -1]
    parts = [make(4, part=(index, 2))(2) for index in range(2)]
    for name, whole in at(2).items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole)
    many = make(25, part=(0, 1))(0)["embedding"][:, 0]  # fewer queries than a batch
    assert set(np.bincount(many.astype(int)).tolist()) == {2, 3}


# Two numbers cannot hold these clusters by directions: there is something to learn.
NARROW = RqVaeConfig(levels=3, codes=8, latent=2, hidden=(32,), kmeans_iterations=3)


def train(folder, **more):
    settings = {"steps": 100, "batch_size": 64, "seed": 2, "encoder": "abc", **more}
    return rqvae.train_rqvae(
        clustered(),
        folder,
        config=NARROW,
        mesh=mesh_of(1),
        optimizer=make_optimizer("adamw", 1e-2, decay="cosine", steps=100),
        **settings,
    )


def test_training_betters_its_start_and_reports_use(tmp_path):
    quantiser = train(tmp_path)
    assert (quantiser.encoder, quantiser.levels, quantiser.size) == ("abc", 3, 8)
    embeddings = clustered()

    def error(quantiser):
        back = quantiser.decode(quantiser.reconstruct(quantiser.codes(embeddings)))
        return ((back - embeddings) ** 2).sum(1).mean()

    assert error(quantiser) < 0.9 * error(rqvae.as_quantiser(start(NARROW), NARROW))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if row["kind"] == "evaluate"][-1]
    ids = quantiser.codes(embeddings)
    assert told["reconstruction"] == pytest.approx(error(quantiser), rel=1e-3)
    for level in range(3):
        share = np.bincount(ids[:, level], minlength=8) / 300
        entropy = -sum(p * np.log(p) for p in share if p)
        assert told[f"usage_{level + 1}"] == pytest.approx((share > 0).mean())
        assert told[f"perplexity_{level + 1}"] == pytest.approx(np.exp(entropy), rel=1e-3)
    told = next(row for row in rows if row["kind"] == "train")
    assert {"reconstruction", "cosine", "commitment"} <= told.keys()


def test_another_configuration_does_not_go_on_from_a_checkpoint(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(UserError, match="another configuration"):
        train(tmp_path, steps=4, seed=3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"codes": 1}, "2 to 65,536 codes"),
        ({"hidden": (0,)}, "sizes of at least 1"),
        ({"activation": "tanh"}, "relu, gelu"),
        ({"decay": 1.0}, r"decay=1.0.*\[0, 1\)"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, told):
    with pytest.raises(UserError, match=told):
        RqVaeConfig(**settings)
