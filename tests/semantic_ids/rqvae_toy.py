"""Clustered embeddings, a small RQ-VAE with initial parameters, and a few updates, for tests."""

import functools

import jax
import numpy as np

from onesug_jax.semantic_ids import rqvae_training
from onesug_jax.semantic_ids.rqvae import RqVaeConfig, rqvae_stage
from onesug_jax.train import step as steps
from onesug_jax.train import train_state
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


@functools.cache
def start(config=CONFIG):
    return jax.tree.map(np.asarray, rqvae_training.initial_params(config, clustered(), seed=0))


def batch_at(size=16, count=300, seed=1):
    return rqvae_training.batches(
        clustered(count), size, seed=seed, slots=min(size, 8), process_rows=np.arange(size)
    )


def mesh_of(devices):
    return make_mesh(devices, devices=jax.devices()[:devices])


@functools.cache
def run(devices=1, accumulation=1, updates=3, weight_decay=0.0):
    stage, mesh = rqvae_stage(CONFIG, WIDTH, 16), mesh_of(devices)
    optimizer = rqvae_training.spare_codebooks(
        make_optimizer("adamw", 0.01, weight_decay=weight_decay)
    )
    layout = train_state.shardings_of(train_state.abstract_state(stage, optimizer, mesh))
    update = steps.make_train_step(stage, optimizer, mesh, accumulation, 5)
    state = train_state.init_state(
        stage, optimizer, mesh, 5, jax.device_put(start(), layout.params)
    )
    for t in range(updates):
        state, metrics = update(state, global_batch(mesh, batch_at()(t)), None)
    return jax.device_get((state.params, metrics))
