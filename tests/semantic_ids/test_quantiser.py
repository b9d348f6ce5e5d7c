"""The numpy quantiser against a slow reference and against the JAX module, and its files."""

import functools

import jax
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids import quantiser as quantisers
from onesug_jax.semantic_ids import rqvae, rqvae_training
from onesug_jax.semantic_ids.quantiser import ABOUT, ARRAYS, Quantiser

CONFIG = rqvae.RqVaeConfig(levels=3, codes=16, latent=6, hidden=(20, 16))


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    e = np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    return e / np.linalg.norm(e, axis=1, keepdims=True)


@functools.cache
def trained(config=CONFIG):
    """JAX parameters and their quantiser; biases are not 0, as after training."""
    params = jax.jit(rqvae.rqvae_stage(config, 10, 8).init_fn)(jax.random.key(1))
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: np.asarray(x) + np.float32(0.1) * rng.standard_normal(x.shape, np.float32), params
    )
    return params, rqvae_training.as_quantiser(params, config, "abc")


def slow_codes(quantiser: Quantiser, embedding: np.ndarray) -> list[int]:
    """The id of one embedding by its definition, in float64."""
    x = embedding.astype(np.float64)
    for number, (weight, bias) in enumerate(quantiser.layers):
        x = (np.maximum(x, 0) if number else x) @ weight.astype(np.float64) + bias
    codes = []
    for codebook in quantiser.codebooks.astype(np.float64):
        codes.append(int(np.argmin([np.sum((x - code) ** 2) for code in codebook])))
        x = x - codebook[codes[-1]]
    return codes


def test_codes_are_the_nearest_level_by_level(embeddings):
    _, quantiser = trained()
    ids = quantiser.codes(embeddings)
    assert (ids.dtype, ids.shape) == (np.uint16, (300, 3))
    assert ids.tolist() == [slow_codes(quantiser, e) for e in embeddings]
    assert len(np.unique(ids, axis=0)) > 20


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_numpy_and_jax_give_the_same(embeddings, activation):
    config = rqvae.RqVaeConfig(3, 16, 6, (20, 16), activation)
    params, quantiser = trained(config)
    latents = jax.jit(rqvae.encode, static_argnums=2)(params, embeddings, activation)
    np.testing.assert_allclose(quantiser.latents(embeddings), latents, atol=1e-5)
    codes, residuals = jax.jit(rqvae.quantise)(latents, params["codebooks"]["codes"])
    np.testing.assert_array_equal(quantiser.codes(embeddings), np.asarray(codes).T)
    sums = np.asarray(latents - residuals[-1])
    np.testing.assert_allclose(quantiser.reconstruct(quantiser.codes(embeddings)), sums, atol=1e-5)
    decoded = jax.jit(rqvae.decode, static_argnums=2)(params, sums, activation)
    np.testing.assert_allclose(quantiser.decode(sums), decoded, atol=1e-5)


def test_reconstruct_sums_the_first_codes():
    codebooks = np.array([[[1, 0], [0, 1]], [[0.5, 0], [0, 0.25]]], np.float32)
    quantiser = Quantiser(codebooks)
    embeddings = np.array([[1.4, 0.1], [0.1, 1.3]], np.float32)
    before = embeddings.copy()
    ids = quantiser.codes(embeddings)
    assert ids.tolist() == [[0, 0], [1, 1]]
    assert quantiser.reconstruct(ids).tolist() == [[1.5, 0], [0, 1.25]]
    assert quantiser.reconstruct(ids[:, :1]).tolist() == [[1, 0], [0, 1]]
    assert quantiser.reconstruct(ids[:, :0]).tolist() == [[0, 0], [0, 0]]
    np.testing.assert_array_equal(embeddings, before)


def test_ties_go_to_the_smaller_code():
    quantiser = Quantiser(np.zeros((2, 5, 3), np.float32))
    assert quantiser.codes(np.ones((2, 3), np.float32)).tolist() == [[0, 0], [0, 0]]


def test_blocks_and_memory_maps_change_nothing(embeddings, tmp_path, monkeypatch):
    _, quantiser = trained()
    expected = quantiser.codes(embeddings)
    monkeypatch.setattr(quantisers, "_ROWS", 7)
    np.save(tmp_path / "e.npy", embeddings)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    np.testing.assert_array_equal(quantiser.codes(mapped), expected)
    assert quantiser.codes(embeddings[:0]).shape == (0, 3)


def test_a_saved_quantiser_loads_unchanged(embeddings, tmp_path):
    _, quantiser = trained()
    quantiser.save(str(tmp_path))
    again = Quantiser.load(str(tmp_path), expect_encoder="abc")
    assert again.fingerprint == quantiser.fingerprint
    assert (again.levels, again.size, again.width, again.encoder) == (3, 16, 10, "abc")
    np.testing.assert_array_equal(again.codes(embeddings), quantiser.codes(embeddings))
    latents = quantiser.latents(embeddings)
    np.testing.assert_array_equal(again.decode(latents), quantiser.decode(latents))


def test_the_fingerprint_depends_on_every_number():
    fingerprints = set()
    for name, number in (("codebooks", 0), ("layers", 3), ("decoder", 4), ("encoder", 0), ("", 0)):
        _, quantiser = trained()
        parts = {
            "codebooks": [quantiser.codebooks],
            "layers": [part.copy() for layer in quantiser.layers for part in layer],
            "decoder": [part.copy() for layer in quantiser.decoder for part in layer],
        }
        if name in parts:
            changed = parts[name][number] = parts[name][number].copy()
            changed.flat[-1] += 1e-3
        pairs = [list(zip(x[::2], x[1::2], strict=True)) for x in list(parts.values())[1:]]
        encoder = "abd" if name == "encoder" else quantiser.encoder
        again = Quantiser(parts["codebooks"][0], *pairs, encoder=encoder)
        fingerprints.add(again.fingerprint)
    assert len(fingerprints) == 5
    assert trained()[1].fingerprint in fingerprints


def test_another_encoder_and_damaged_files_are_refused(embeddings, tmp_path):
    _, quantiser = trained()
    quantiser.save(str(tmp_path))
    with pytest.raises(UserError, match=r"'abc'.*'xyz'"):
        Quantiser.load(str(tmp_path), expect_encoder="xyz")
    with pytest.raises(UserError, match=r"shape \[300, 9\].*\[B, 10\]"):
        quantiser.codes(embeddings[:, :9])
    with pytest.raises(UserError, match="activation='tanh'.*relu, gelu"):
        Quantiser(quantiser.codebooks, activation="tanh")
    path = tmp_path / ARRAYS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        Quantiser.load(str(tmp_path))
    Quantiser(quantiser.codebooks + 1, encoder="abc").save(str(tmp_path / "other"))
    path.write_bytes(whole)
    (tmp_path / ABOUT).write_bytes((tmp_path / "other" / ABOUT).read_bytes())
    with pytest.raises(UserError, match="does not belong"):
        Quantiser.load(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        Quantiser.load(str(tmp_path))
