"""BERT in Flax against a slow numpy reference, and its shapes on a mesh."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from onesug_jax.errors import UserError
from onesug_jax.text_encoder.bert import Bert, EncoderConfig
from onesug_jax.train.layout import param_shardings
from onesug_jax.train.mesh import make_mesh, unbox

CONFIG = EncoderConfig(
    vocab_size=40, d_model=16, layers=2, heads=4, d_ff=24, max_positions=12, max_length=12
)


def random_params(config, seed=0):
    """Random values in every array, norms and biases too, so that a missing one shows."""
    shapes = jax.eval_shape(
        Bert(config).init, jax.random.key(0), np.ones((1, 4), np.int32), np.ones(1, np.int32)
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), unbox(shapes["params"])
    )


def slow_norm(x, p, eps):
    return (x - x.mean()) / math.sqrt(x.var() + eps) * p["scale"] + p["bias"]


def slow_bert(config, params, tokens):
    """One text without padding, position by position and head by head, in float64: `[D]`."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = [
        slow_norm(p["words"][t] + p["positions"][i] + p["types"][0], p["norm"], config.norm_eps)
        for i, t in enumerate(tokens)
    ]
    for number in range(config.layers):
        layer = p[f"layer_{number}"]
        after = []
        for x in hidden:
            mixed = layer["out_bias"].copy()
            for h in range(config.heads):
                query = x @ layer["query_kernel"][:, h] + layer["query_bias"][h]
                keys = [y @ layer["key_kernel"][:, h] + layer["key_bias"][h] for y in hidden]
                values = [y @ layer["value_kernel"][:, h] + layer["value_bias"][h] for y in hidden]
                scores = np.array([query @ key for key in keys]) / math.sqrt(config.head_dim)
                shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                head = sum(share * value for share, value in zip(shares, values, strict=True))
                mixed += head @ layer["out_kernel"][h]
            x = slow_norm(x + mixed, layer["attention_norm"], config.norm_eps)
            inner = x @ layer["up_kernel"] + layer["up_bias"]
            inner = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner])
            x2 = inner @ layer["down_kernel"] + layer["down_bias"]
            after.append(slow_norm(x + x2, layer["norm"], config.norm_eps))
        hidden = after
    pooled = np.mean(hidden, axis=0) if config.pooling == "mean" else hidden[0]
    return pooled / np.linalg.norm(pooled)


@functools.partial(jax.jit, static_argnums=0)
def vectors(model, params, tokens, lengths, key=None):
    rngs = {} if key is None else {"dropout": key}
    return model.apply({"params": params}, tokens, lengths, rngs=rngs)


@pytest.mark.long
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_the_slow_reference(pooling):
    config = dataclasses.replace(CONFIG, pooling=pooling)
    params = random_params(config)
    rng = np.random.default_rng(1)
    lengths = np.array([2, 5, 9, 12], np.int32)
    tokens = rng.integers(0, 40, (4, 12), dtype=np.int32)  # noise beyond the length
    found = vectors(Bert(config), params, tokens, lengths)
    for row, length in enumerate(lengths):
        expected = slow_bert(config, params, tokens[row, :length])
        np.testing.assert_allclose(found[row], expected, atol=2e-6)


@pytest.mark.long
def test_dropout_is_in_training_only():
    params = random_params(CONFIG)
    tokens, lengths = np.ones((2, 4), np.int32), np.full(2, 4, np.int32)

    def run(deterministic, key):
        model = Bert(dataclasses.replace(CONFIG, dropout=0.5), deterministic)
        return vectors(model, params, tokens, lengths, jax.random.key(key))

    np.testing.assert_array_equal(run(True, 0), run(True, 1))
    np.testing.assert_array_equal(run(False, 0), run(False, 0))
    assert np.abs(run(False, 0) - run(False, 1)).max() > 0.01


def test_bfloat16_stays_near_and_gives_float32():
    params = random_params(CONFIG)
    tokens, lengths = np.arange(8, dtype=np.int32)[None], np.array([8], np.int32)
    wide = vectors(Bert(CONFIG), params, tokens, lengths)
    narrow = Bert(dataclasses.replace(CONFIG, dtype="bfloat16"))
    found = vectors(narrow, params, tokens, lengths)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wide).max() < 0.05


@pytest.mark.eight_devices
def test_parameters_are_sharded_by_their_axis_names():
    boxed = jax.eval_shape(
        Bert(CONFIG).init, jax.random.key(0), np.ones((1, 4), np.int32), np.ones(1, np.int32)
    )["params"]
    layout = param_shardings(boxed, make_mesh(2, 2, 2))
    layer = layout["layer_0"]
    assert layout["words"].spec == P("tensor", "fsdp")
    assert layout["positions"].spec == P(None, "fsdp")
    assert layer["query_kernel"].spec == P("fsdp", "tensor", None)
    assert layer["query_bias"].spec == P("tensor", None)
    assert layer["out_kernel"].spec == P("tensor", None, "fsdp")
    assert layer["up_kernel"].spec == P("fsdp", "tensor")
    assert layer["down_kernel"].spec == P("tensor", "fsdp")
    assert layer["down_bias"].spec == P("fsdp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "d_model=16 is not divisible by heads=3"),
        ({"max_length": 13}, "max_length=13.*max_positions=12"),
        ({"pooling": "max"}, "pooling='max'.*mean, cls"),
        ({"dtype": "float16"}, "dtype='float16'.*float32, bfloat16"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
