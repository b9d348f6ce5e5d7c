"""RQ-VAE: an autoencoder with residual codebooks, trained on embeddings (PAPER.md section 2.4).

embedding -> encoder network -> latent -> levels x codes, each level on the residual of the levels
before -> decoder network -> embedding. Gradients pass the codes by the straight-through estimator.
Codes are running means of the residuals assigned to them; an unused code moves to a residual.
`rqvae_training` trains it, `quantize` computes the ids of queries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from onesug_jax.errors import UserError
from onesug_jax.semantic_ids.quantiser import ACTIVATIONS
from onesug_jax.semantic_ids.rq_kmeans import at_length, squared_distances
from onesug_jax.train.train_state import Stage

Params = Any


@dataclass(frozen=True)
class RqVaeConfig:
    """Sizes and settings of the quantiser; `rq_kmeans` uses some of them.

    Attributes:
      levels, codes: an id is `levels` numbers below `codes`.
      latent: width of the codes.
      hidden: widths between embedding and latent; the decoder has them in reverse.
      activation: "relu" or "gelu".
      commitment: weight of the commitment loss, which pulls latents towards their codes.
      decay: of the running means, an update.
      revive_below: a code is moved if its share of use is below this part of an even share.
      kmeans_iterations, kmeans_sample: rounds, and most rows a code, of the k-means that makes the
        initial codebooks.

    Examples:
      >>> from onesug_jax import RqVaeConfig
      >>> RqVaeConfig(levels=3, codes=16, latent=8).levels
      3
    """

    levels: int = 4
    codes: int = 512
    latent: int = 256
    hidden: tuple[int, ...] = (512,)
    activation: str = "relu"
    commitment: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.1
    kmeans_iterations: int = 10
    kmeans_sample: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        sizes = (self.levels, self.latent, *self.hidden, self.kmeans_sample)
        if min(sizes) < 1 or self.kmeans_iterations < 0 or not 2 <= self.codes <= 2**16:
            raise UserError(
                f"{self}: expected sizes of at least 1, 2 to 65,536 codes and 0 or more rounds of "
                "k-means."
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"RqVaeConfig.activation={self.activation!r}: expected one of "
                f"{', '.join(ACTIVATIONS)}."
            )
        if not (0 <= self.decay < 1 and 0 <= self.revive_below < 1 and self.commitment >= 0):
            raise UserError(
                f"RqVaeConfig decay={self.decay}, revive_below={self.revive_below}, "
                f"commitment={self.commitment}: expected decay and revive_below in [0, 1) and a "
                "commitment of at least 0."
            )

    def rank(self, width: int) -> int:
        """Number of principal directions that the initial networks preserve."""
        return min(width, self.latent, *(max(1, size // 2) for size in self.hidden))


def rqvae_stage(config: RqVaeConfig, width: int, batch_size: int) -> Stage:
    """The stage that the training loop runs, for embeddings of `width` D.

    A batch is `embedding` [B, D] and `slot` [B], from `batches`. The loss of an example is the
    squared reconstruction error plus the commitment loss, summed over the levels. Reported sums:
    `reconstruction` (squared error), `cosine`, `commitment`. The optimizer must be wrapped by
    `spare_codebooks`.
    """
    slots = min(batch_size, config.codes)

    def init(key: jax.Array) -> Params:
        networks, turn, codes = jax.random.split(key, 3)
        basis = jax.random.normal(turn, (width, config.rank(width))) * width**-0.5
        shape = (config.levels, config.codes, config.latent)
        codebooks = jax.random.normal(codes, shape) * config.latent**-0.5
        share = jnp.full(shape[:2], 1 / config.codes)
        running = {"share": share, "mass": codebooks * share[..., None]}
        return {
            **autoencoder(networks, basis, config),
            "codebooks": {"codes": codebooks, **running},
        }

    def loss(params: Params, batch: Mapping[str, jax.Array], key: jax.Array):
        embedding, count = batch["embedding"], len(batch["embedding"])
        latent = encode(params, embedding, config.activation)
        codebooks = jax.lax.stop_gradient(params["codebooks"]["codes"])
        codes, residuals = quantise(jax.lax.stop_gradient(latent), codebooks)
        # |latent - sum of the first l codes|^2, over all l; the gradient goes to the latent only.
        shift = latent - jax.lax.stop_gradient(latent)
        commitment = jnp.sum((residuals[1:] + shift) ** 2)
        straight_through = latent - jax.lax.stop_gradient(residuals[-1])  # the sum of the codes
        decoded = decode(params, straight_through, config.activation)
        reconstruction = jnp.sum((embedding - decoded) ** 2)
        cosine = jnp.sum(embedding * decoded, -1) / (jnp.linalg.norm(decoded, axis=-1) + 1e-9)
        total = reconstruction + config.commitment * commitment
        used = jax.nn.one_hot(codes, config.codes)
        chosen = jax.nn.one_hot(batch["slot"], slots)
        gather = functools.partial(jnp.einsum, precision="highest")
        sums = {
            "reconstruction": reconstruction,
            "cosine": jnp.sum(cosine),
            "commitment": commitment,
            "code_counts": jnp.sum(used, axis=1),
            "code_sums": gather("lbk,lbd->lkd", used, residuals[:-1]),
            "candidates": gather("bs,lbd->lsd", chosen, residuals[:-1]),
        }
        return total, jnp.float32(count), jax.lax.stop_gradient(sums)

    def after_update(params: Params, sums: Mapping[str, jax.Array], key: jax.Array) -> Params:
        return {**params, "codebooks": follow(params["codebooks"], sums, key, config)}

    return Stage("rqvae", init, loss, after_update=after_update)


def follow(
    codebooks: Mapping[str, jax.Array],
    sums: Mapping[str, jax.Array],
    key: jax.Array,
    config: RqVaeConfig,
) -> dict[str, jax.Array]:
    """The codebooks after a batch: running means are updated, unused codes move.

    Args:
      codebooks: `codes` [levels, codes, latent], their running `share` of use [levels, codes] and
        `mass`, share times mean [levels, codes, latent].
      sums: of the batch: `code_counts` [levels, codes], `code_sums` [levels, codes, latent] of the
        residuals of each code, and `candidates` [levels, slots, latent], residuals to which unused
        codes may move.
      key: assigns candidates to unused codes.
    """
    size = jnp.sum(sums["code_counts"][0])
    decay, new = config.decay, (1 - config.decay) / size
    share = decay * codebooks["share"] + new * sums["code_counts"]
    mass = decay * codebooks["mass"] + new * sums["code_sums"]
    even = 1 / config.codes
    unused = share < config.revive_below * even
    slots = sums["candidates"].shape[1]
    turn = jnp.cumsum(unused, axis=1) - 1
    moved = unused & (turn < slots)
    shuffle = jax.vmap(lambda key: jax.random.permutation(key, slots))
    order = shuffle(jax.random.split(key, config.levels))
    place = jnp.take_along_axis(order, jnp.clip(turn, 0, slots - 1), axis=1)
    fresh = jnp.take_along_axis(sums["candidates"], place[..., None], axis=1)
    # Scaled to the length of the level's codes: at full length a code would get no other residual.
    squares = jnp.sum(codebooks["codes"] ** 2, axis=-1) * codebooks["share"]
    rms_length = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.sum(codebooks["share"], axis=1))
    fresh = at_length(fresh, rms_length[:, None, None])
    share = jnp.where(moved, even, share)
    mass = jnp.where(moved[..., None], even * fresh, mass)
    codes = mass / jnp.maximum(share, 1e-20)[..., None]
    # A code that is too rare for a mean and has not moved stays as it is.
    codes = jnp.where(share[..., None] > 1e-12, codes, codebooks["codes"])
    return {"codes": codes, "share": share, "mass": mass}


def encode(params: Params, embeddings: jax.Array, activation: str) -> jax.Array:
    """Embeddings [B, D] -> latents [B, latent]."""
    return _network(params["encoder"], embeddings, activation)


def decode(params: Params, latents: jax.Array, activation: str) -> jax.Array:
    """Latents, or sums of codes, [B, latent] -> embeddings [B, D]."""
    return _network(params["decoder"], latents, activation)


def quantise(latents: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latents [B, latent] -> codes [levels, B], and residuals [levels + 1, B, latent].

    Residual l is the latent less the codes of the levels before l: the first is the latent, the
    last the error.
    """
    residuals, codes = [latents], []
    for codebook in codebooks:
        codes.append(jnp.argmin(squared_distances(residuals[-1], codebook), axis=1))
        residuals.append(residuals[-1] - codebook[codes[-1]])
    return jnp.stack(codes), jnp.stack(residuals)


def autoencoder(key: jax.Array, basis: jax.Array, config: RqVaeConfig) -> dict[str, Params]:
    """Initial encoder and decoder: together the projection onto a basis [D, rank]."""
    to_latent = jnp.eye(basis.shape[1], config.latent)
    encoder, decoder = jax.random.split(key)
    return {
        "encoder": _init_network(encoder, basis, config.hidden, to_latent),
        "decoder": _init_network(decoder, to_latent.T, config.hidden[::-1], basis.T),
    }


def _init_network(
    key: jax.Array, first: jax.Array, hidden: tuple[int, ...], last: jax.Array
) -> Params:
    """A network that computes x @ first @ last, with `first` [in, rank] and `last` [rank, out].

    Each hidden layer holds every number twice, once negated, since act(x) - act(-x) = x for relu
    and for gelu. The remaining units have random inputs and no outputs yet. A random network would
    spend most of its training on recovering the distances between the embeddings.
    """
    rank, weights, layers = first.shape[1], first, {}
    for number, width in enumerate(hidden):
        spare = (len(weights), width - 2 * rank)
        noise = jax.random.normal(jax.random.fold_in(key, number), spare) * spare[0] ** -0.5
        kernel = jnp.concatenate([weights, -weights, noise], axis=1)
        layers[f"layer_{number}"] = {"kernel": kernel, "bias": jnp.zeros(width)}
        weights = jnp.concatenate([jnp.eye(rank), -jnp.eye(rank), jnp.zeros((spare[1], rank))])
    kernel = weights @ last
    layers[f"layer_{len(hidden)}"] = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
    return layers


def _network(layers: Params, x: jax.Array, activation: str) -> jax.Array:
    act = jax.nn.relu if activation == "relu" else functools.partial(jax.nn.gelu, approximate=True)
    for number in range(len(layers)):
        layer = layers[f"layer_{number}"]
        x = act(x) if number else x
        x = jnp.matmul(x, layer["kernel"], precision="highest") + layer["bias"]
    return x
