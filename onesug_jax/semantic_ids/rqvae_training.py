"""Training of the RQ-VAE: batches of embeddings, initial parameters from the data, metrics.

PAPER.md section 2.4. The common training loop trains the stage of `rqvae`; the result is a numpy
`Quantiser`. `quantize` computes the ids of queries.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from onesug_jax.files import fingerprint
from onesug_jax.semantic_ids.quantiser import Quantiser
from onesug_jax.semantic_ids.rq_kmeans import residual_kmeans, take_sample
from onesug_jax.semantic_ids.rqvae import (
    Params,
    RqVaeConfig,
    autoencoder,
    decode,
    encode,
    quantise,
    rqvae_stage,
)
from onesug_jax.train import mesh as meshes
from onesug_jax.train.loop import fit


def train_rqvae(
    embeddings: np.ndarray,
    folder: str | os.PathLike,
    *,
    config: RqVaeConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    seed: int,
    encoder: str = "",
    **loop: Any,
) -> Quantiser:
    """Train on embeddings [N, D], possibly a memory map; resumes from a checkpoint in `folder`.

    `encoder` is the fingerprint of the text encoder; `loop` goes to `train.loop.fit`. The identity
    of the trained state is `config`, the encoder and the embeddings.

    Raises:
      UserError: an error of `fit`.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from onesug_jax import RqVaeConfig, make_mesh, make_optimizer, train_rqvae
      >>> embeddings = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> config = RqVaeConfig(levels=2, codes=8, latent=4, hidden=(8,), kmeans_iterations=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     quantiser = train_rqvae(
      ...         embeddings,
      ...         folder,
      ...         config=config,
      ...         mesh=make_mesh(),
      ...         optimizer=make_optimizer(),
      ...         steps=2,
      ...         batch_size=16,
      ...         seed=0,
      ...     )
      rqvae: ...
      >>> quantiser.codes(embeddings).shape
      (64, 2)
    """
    stage = rqvae_stage(config, embeddings.shape[1], batch_size)
    sample = take_sample(embeddings, config.kmeans_sample * config.codes, seed)
    subset = sample[:: max(1, len(sample) // 16_384)]
    evaluate = {"evaluate_every": max(1, steps // 10), "evaluate_fn": measure(config, subset)}
    identity = {
        "stage": "quantize",
        "rqvae": dataclasses.asdict(config),
        "encoder": encoder,
        "embeddings": fingerprint(embeddings),
    }
    result = fit(
        stage,
        batch_at=batches(
            embeddings,
            batch_size,
            seed=seed,
            slots=min(batch_size, config.codes),
            process_rows=meshes.process_batch_shard(mesh, batch_size),
        ),
        batch_size=batch_size,
        mesh=mesh,
        optimizer=spare_codebooks(optimizer),
        steps=steps,
        seed=seed,
        folder=folder,
        identity=identity,
        params_from=lambda: initial_params(config, sample, seed),
        **{**evaluate, **loop},
    )
    return as_quantiser(jax.device_get(result.params), config, encoder)


def as_quantiser(params: Params, config: RqVaeConfig, encoder: str = "") -> Quantiser:
    """The trained parameters as a numpy quantiser."""

    def layers(network):
        return [(layer["kernel"], layer["bias"]) for _, layer in sorted(network.items())]

    return Quantiser(
        params["codebooks"]["codes"],
        layers(params["encoder"]),
        layers(params["decoder"]),
        activation=config.activation,
        encoder=encoder,
    )


def spare_codebooks(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, without updates of the codebooks: weight decay would move them to zero."""

    def only_networks(updates, params=None):
        del params
        return {**updates, "codebooks": jax.tree.map(jnp.zeros_like, updates["codebooks"])}

    class Sparing(optax.GradientTransformationExtraArgs):
        """Has the schedule, which the training step reports, and the settings."""

    wrapped = Sparing(*optax.chain(optimizer, optax.stateless(only_networks)))
    wrapped.schedule = getattr(optimizer, "schedule", None)
    wrapped.settings = getattr(optimizer, "settings", {})
    return wrapped


def batches(
    embeddings: np.ndarray, batch_size: int, *, seed: int, slots: int, process_rows: np.ndarray
) -> Callable[[int], dict[str, np.ndarray]]:
    """`batch_at(step)` over embeddings [N, D]: every epoch is a permutation by (seed, epoch).

    With fewer queries than `batch_size` a batch repeats queries. The first `slots` rows of the
    global batch have a slot number and are candidates for unused codes; the other rows have -1.

    Args:
      process_rows: the rows of a batch that this process reads.
    """
    count = len(embeddings)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(np.arange(count, dtype=np.uint32))

    def batch_at(step: int) -> dict[str, np.ndarray]:
        epochs, within = np.divmod(step * batch_size + process_rows, count)
        rows = np.empty(len(process_rows), np.int64)
        for epoch in np.unique(epochs):
            mask = epochs == epoch
            rows[mask] = order(int(epoch))[within[mask]]
        slot = np.where(process_rows < slots, process_rows, -1).astype(np.int32)
        return {"embedding": np.asarray(embeddings[rows], np.float32), "slot": slot}

    return batch_at


def initial_params(config: RqVaeConfig, sample: np.ndarray, seed: int) -> Params:
    """Initial parameters from a sample [M, D] of the embeddings.

    The networks project onto the principal directions of the sample, and the codebooks are a
    residual k-means of its latents; so the initial error is that of k-means.
    """
    _, directions = np.linalg.eigh(sample.T @ sample)
    basis = directions[:, ::-1][:, : config.rank(sample.shape[1])]
    networks = autoencoder(jax.random.key(seed), jnp.asarray(basis), config)
    latents = encode(networks, jnp.asarray(sample), config.activation)
    codes, share = residual_kmeans(
        np.asarray(latents),
        config.levels,
        config.codes,
        iterations=config.kmeans_iterations,
        seed=seed,
    )
    mass = codes * share[..., None]
    return {**networks, "codebooks": {"codes": codes, "share": share, "mass": mass}}


def measure(config: RqVaeConfig, sample: np.ndarray) -> Callable[[Params, int], dict[str, float]]:
    """`evaluate_fn(params, step)` on a fixed sample: usage and perplexity a level, error, cosine.

    `usage_l` is the share of codes of level l that occur, and `perplexity_l` the exponential of the
    entropy of their shares: the number of equally used codes with that entropy.
    """

    @jax.jit
    def numbers(params, sample):
        latents = encode(params, sample, config.activation)
        codes, residuals = quantise(latents, params["codebooks"]["codes"])
        decoded = decode(params, latents - residuals[-1], config.activation)
        counts = jax.vmap(lambda level: jnp.bincount(level, length=config.codes))(codes)
        share = counts / len(sample)
        entropy = -jnp.sum(jax.scipy.special.xlogy(share, share), axis=1)
        cosine = jnp.sum(sample * decoded, -1) / (jnp.linalg.norm(decoded, axis=-1) + 1e-9)
        error = jnp.mean(jnp.sum((sample - decoded) ** 2, -1))
        return jnp.mean(counts > 0, axis=1), jnp.exp(entropy), error, jnp.mean(cosine)

    def evaluate(params: Params, step: int) -> dict[str, float]:
        usage, perplexity, error, cosine = jax.device_get(numbers(params, sample))
        values = {"reconstruction": float(error), "cosine": float(cosine)}
        values |= {f"usage_{level}": float(x) for level, x in enumerate(usage, 1)}
        return values | {f"perplexity_{level}": float(x) for level, x in enumerate(perplexity, 1)}

    return evaluate
