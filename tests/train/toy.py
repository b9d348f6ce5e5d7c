"""A toy stage for the training tests: it predicts the largest token id of each row."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from onesug_jax.train.train_state import Stage

VOCAB, EMBED, HIDDEN = 16, 16, 32


def _named(*names):
    return nn.with_logical_partitioning(nn.initializers.normal(0.3), names)


class Toy(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens, quiet=True):
        x = nn.Embed(VOCAB, EMBED, embedding_init=_named("vocab", "embed"))(tokens).mean(1)
        x = nn.with_logical_constraint(x, ("batch", "embed"))
        x = nn.tanh(nn.Dense(HIDDEN, kernel_init=_named("embed", "mlp"))(x))
        x = nn.with_logical_constraint(x, ("batch", "mlp"))
        x = nn.Dropout(self.dropout)(x, deterministic=quiet)
        return nn.Dense(VOCAB, kernel_init=_named("mlp", "vocab"))(x)


def make_stage(dropout=0.0, **more) -> Stage:
    module = Toy(dropout)

    def loss_fn(params, batch, key):
        logits = module.apply({"params": params}, batch["tokens"], False, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
        right = (logits.argmax(-1) == batch["target"]) * batch["weight"]
        return (losses * batch["weight"]).sum(), batch["weight"].sum(), {"accuracy": right.sum()}

    def init_fn(key):
        return module.init(key, jnp.zeros((1, 4), jnp.int32))["params"]

    return Stage("toy", init_fn, loss_fn, tokens_fn=lambda batch: batch["tokens"].size, **more)


def make_batch_at(size=16, length=4, poison=None):
    """Batches as a function of the step; batch `poison` contains a NaN weight."""

    def batch_at(step):
        rng = np.random.default_rng([5, step])
        tokens = rng.integers(VOCAB, size=(size, length), dtype=np.int32)
        weight = rng.uniform(0.2, 1.0, size).astype(np.float32)
        if step == poison:
            weight[3] = np.nan
        return {"tokens": tokens, "target": tokens.max(1), "weight": weight}

    return batch_at


def same_bits(one, other) -> bool:
    """Whether two trees contain bitwise equal arrays."""
    leaves, structure = jax.tree.flatten(one)
    others, other_structure = jax.tree.flatten(other)
    return structure == other_structure and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(leaves, others, strict=True)
    )


def contents(folder) -> dict:
    """{path: bytes} of every file below a folder, and None for every folder."""
    paths = pathlib.Path(folder).rglob("*")
    return {path: path.read_bytes() if path.is_file() else None for path in paths}
