"""FLOPs counted on the jaxpr against arithmetic and the model's formula."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train.flops import flops

CONFIG = ModelConfig(
    vocab_size=64, d_model=16, num_heads=2, head_dim=8, d_ff=24, encoder_layers=3, decoder_layers=2
)


def count(f, *args, trips=1):
    return flops(jax.make_jaxpr(f)(*args), trips)


def model(config):
    tokens, targets = jnp.ones((2, 12), jnp.int32), jnp.ones((2, 5), jnp.int32)
    module = Seq2Seq(config)
    boxed = jax.eval_shape(module.init, jax.random.key(0), tokens, targets)
    return lambda variables: module.apply(variables, tokens, targets), nn.meta.unbox(boxed)


def test_batched_products_and_convolutions():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 7))
    assert count(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 5 * 7
    image, kernel = jnp.ones((1, 2, 9)), jnp.ones((4, 2, 3))
    convolve = lambda x, w: jax.lax.conv(x, w, (1,), "VALID")  # noqa: E731
    assert count(convolve, image, kernel) == 2 * 4 * 7 * 2 * 3


def test_loops_count_by_their_trips_and_branches_by_the_largest():
    x = jnp.ones((4, 4))
    scanned = lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=9)[0]  # noqa: E731
    assert count(scanned, x) == 9 * 128
    looped = lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ x, x)  # noqa: E731
    assert count(looped, x, trips=5) == 5 * 128
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)  # noqa: E731
    assert count(branch, x) == 256


@pytest.mark.parametrize("change", [{}, {"unroll": True}])
def test_the_count_of_a_model_is_that_of_its_formula(change):
    config = dataclasses.replace(CONFIG, **change)
    forward, variables = model(config)
    assert count(forward, variables) == 2 * config.flops_per_example(12, 5)


def test_recomputation_is_counted():
    plain, variables = model(CONFIG)
    recomputed, _ = model(dataclasses.replace(CONFIG, remat="full"))

    def training(forward):
        return count(jax.grad(lambda v: forward(v).sum()), variables) / count(forward, variables)

    assert training(plain) == pytest.approx(3, rel=0.02)
    assert 3.3 < training(recomputed) < 4
