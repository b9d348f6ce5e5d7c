"""Item dropout: whole items of the input hidden while training, and only then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq

CONFIG = ModelConfig(
    vocab_size=32,
    d_model=8,
    num_heads=2,
    head_dim=4,
    d_ff=16,
    encoder_layers=1,
    decoder_layers=1,
    item_dropout=0.5,
    first_marker=20,
    last_marker=29,
)
END = 1
ROW = [20, 5, 6, 21, 22, 7, 8, 23, 9, END, 0, 0]  # prefix, soft token, two related, end, padding
ITEMS = {1: (0, 3), 2: (3, 4), 3: (4, 7), 4: (7, 9)}


@pytest.fixture(scope="module")
def params():
    ones = jnp.ones((1, 4), jnp.int32)
    return Seq2Seq(CONFIG).init(jax.random.key(0), ones, ones)["params"]


def seen(params, rows, key=0, deterministic=False):
    model = Seq2Seq(CONFIG, deterministic=deterministic)
    rngs = {"dropout": jax.random.key(key)}
    return np.asarray(model.apply({"params": params}, jnp.array(rows), method="seen", rngs=rngs))


def test_items_go_whole_at_the_rate_and_prefix_and_end_stay(params):
    found = seen(params, [ROW] * 2000)
    assert (found[:, :3] == ROW[:3]).all() and (found[:, 9:] == ROW[9:]).all()
    for number, (begin, end) in ITEMS.items():
        there = found[:, begin:end] == ROW[begin:end]
        assert (there.all(axis=1) | ~there.any(axis=1)).all()
        if number > 1:
            assert there.all(axis=1).mean() == pytest.approx(0.5, abs=0.05)
    kept = [(found[:, begin] > 0) for begin, _ in list(ITEMS.values())[1:]]
    assert abs(np.corrcoef(kept)[0, 1]) < 0.1


def test_the_draw_is_a_function_of_the_key(params):
    np.testing.assert_array_equal(seen(params, [ROW] * 9, 3), seen(params, [ROW] * 9, 3))
    assert (seen(params, [ROW] * 9, 3) != seen(params, [ROW] * 9, 4)).any()


def test_nothing_is_hidden_outside_training(params):
    np.testing.assert_array_equal(seen(params, [ROW], deterministic=True), [ROW])


def test_a_hidden_item_is_seen_by_neither_side(params):
    """The logits are those of the row without it, but for positions; its words do not matter."""
    model = Seq2Seq(CONFIG, deterministic=False)
    targets = jnp.array([[0, 5, 6]])
    keys = [k for k in range(40) if seen(params, [ROW], k)[0, 4] == 0]
    for key in keys[:3]:
        rngs = {"dropout": jax.random.key(key)}
        other = [*ROW[:5], 11, 12, *ROW[7:]]
        one, two = (
            model.apply({"params": params}, jnp.array([row]), targets, rngs=rngs)
            for row in (ROW, other)
        )
        np.testing.assert_array_equal(one, two)


def test_packed_rows_are_refused(params):
    model = Seq2Seq(CONFIG, deterministic=False)
    ones = jnp.ones((1, 12), jnp.int32)
    with pytest.raises(UserError, match="packed"):
        model.apply(
            {"params": params},
            jnp.array([ROW]),
            ones,
            ones,
            ones,
            rngs={"dropout": jax.random.key(0)},
        )
