"""A tiny model with items and candidate tokens, and requests for it."""

import functools

import jax
import numpy as np

from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import initial
from onesug_jax.train.mesh import unbox
from tests.tiny_model import tiny_config

COUNTS = 4
SOFT = 7
CONFIG = tiny_config(
    8, encoder_layers=2, vector_dim=6, count_columns=COUNTS, candidate_tokens=True, soft_id=SOFT
)
QUERIES, PREFIXES = 12, 3


def tables(seed=0):
    """Twelve queries of one to three words, three prefixes."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(QUERIES + 1, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    words = np.zeros((QUERIES + 1, 3), np.int32)
    weights = np.zeros((QUERIES + 1, 3), np.float32)
    for row in range(1, QUERIES + 1):
        own = rng.choice(6, rng.integers(1, 4), replace=False) + 1
        words[row, : len(own)] = own
        weights[row, : len(own)] = own / 2  # a word weighs the same everywhere
    unit[0] = 0
    prefixes = np.concatenate([np.zeros((1, 6)), unit[1 : PREFIXES + 1]]).astype(np.float32)
    lengths = rng.integers(3, 30, QUERIES + 1).astype(np.int32)
    return ItemTables(unit, words, weights, lengths, prefixes)


def items(candidates=5, seed=0, batch=2):
    """Requests with distinct candidates and a history of up to three queries."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(QUERIES)[:candidates] + 1 for _ in range(batch)])
    history = rng.integers(1, QUERIES + 1, (batch, 3))
    history[-1, 1:] = 0
    counts = rng.normal(1, 2, (batch, candidates, COUNTS)).astype(np.float32)
    minutes = rng.exponential(100, (batch, 3)).astype(np.float32)
    clock = np.stack([rng.integers(0, 24, batch), rng.integers(0, 7, batch)], axis=1)
    prefix = np.arange(batch) % (PREFIXES + 1)
    integers = (rows, history, clock, prefix)
    rows, history, clock, prefix = (x.astype(np.int32) for x in integers)
    typed = rng.integers(1, 5, batch).astype(np.int32)
    return Items(rows, counts, history, minutes, clock, prefix, typed)


def features(batch):
    """The items of a batch as the loader names them."""
    names = {"counts": "candidate_counts", "minutes": "history_minutes"}
    return {names.get(name, name): value for name, value in vars(batch).items()}


def tokens(batch=2):
    """A prefix of some pieces, the soft token, the end."""
    row = np.array([[2, 5, SOFT, 1], [3, SOFT, 1, 0]], np.int32)
    return np.tile(row, (-(-batch // 2), 1))[:batch]


@functools.cache
def params(config=CONFIG, seed=0):
    """Parameters without zeros, so that every part has an effect."""
    made = unbox(jax.jit(initial, static_argnums=0)(config, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), made
    )
