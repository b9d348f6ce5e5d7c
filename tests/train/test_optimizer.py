"""Schedules against their closed forms, optimizers against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train.optimizer import averaged, decay_mask, make_optimizer, make_schedule


def closed_form(decay, t, rate=0.5, warmup=10, steps=50, floor=0.1):
    if t < warmup:
        return rate * (t + 1) / warmup
    done = (t - warmup) / (steps - warmup)
    shape = {
        "none": 1.0,
        "rsqrt": math.sqrt(warmup / (t + 1)),
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
    }[decay]
    return rate * max(shape, floor)


@pytest.mark.parametrize("decay", ["none", "rsqrt", "cosine", "linear"])
def test_schedule_is_its_closed_form(decay):
    schedule = make_schedule(0.5, 10, decay, 50, floor=0.1)
    found = [float(schedule(t)) for t in range(50)]
    np.testing.assert_allclose(found, [closed_form(decay, t) for t in range(50)], rtol=1e-5)
    assert float(schedule(10_000)) >= 0.05 * (1 - 1e-6)


def test_without_warmup_the_first_update_has_the_full_rate():
    for decay in ("none", "rsqrt", "cosine", "linear"):
        assert float(make_schedule(0.5, 0, decay, 50)(0)) == 0.5


def test_adamw_is_adam_with_decoupled_decay_and_clipping():
    rate, decay, clip, (b1, b2, eps) = 0.1, 0.01, 1.0, (0.9, 0.999, 1e-8)
    optimizer = make_optimizer("adamw", rate, 0, "none", weight_decay=decay, clip_norm=clip)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    state = optimizer.init(jax.tree.map(jnp.asarray, params))
    ours = jax.tree.map(jnp.asarray, params)
    moments = {name: (0.0, 0.0) for name in params}
    for t in range(1, 6):
        grads = {name: rng.normal(size=x.shape) * t for name, x in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g * min(1.0, clip / norm)
            m, v = moments[name]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            moments[name] = m, v
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            step += decay * params[name] if name == "kernel" else 0
            params[name] = params[name] - rate * step
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=2e-5, atol=1e-6)


def test_adafactor_is_factored_and_scales_by_the_parameter():
    optimizer = make_optimizer("adafactor", 0.01, 0, "none", clip_norm=None)
    params = {"kernel": jnp.full((128, 256), 2.0)}
    state = optimizer.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 128 * 256 / 10
    grads = {"kernel": jnp.full((128, 256), -3.0)}
    updates, _ = optimizer.update(grads, state, params)
    # A constant gradient has unit RMS once divided by its own scale: the step is rate * RMS(param).
    np.testing.assert_allclose(updates["kernel"], 0.01 * 2.0, rtol=1e-3)


def test_decay_excludes_vectors_even_in_stacked_layers():
    params = {
        "kernel": jnp.zeros((2, 3)),
        "norm": {"scale": jnp.zeros((6, 3))},
        "bias": jnp.zeros(3),
        "head": {"bias": jnp.zeros((6, 3))},
    }
    assert decay_mask(params) == {
        "kernel": True,
        "norm": {"scale": False},
        "bias": False,
        "head": {"bias": False},
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "adamv"}, "Did you mean 'adamw'"),
        ({"name": "adafacto"}, "Did you mean 'adafactor'"),
        ({"decay": "cosin", "steps": 9}, "Did you mean 'cosine'"),
        ({"decay": "linear"}, "needs steps"),
        ({"decay": "cosine", "steps": 5, "warmup_steps": 5}, "steps > warmup_steps=5"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"average": 1.0}, "average=1.0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(UserError) as error:
        make_optimizer(**wrong)
    assert message in str(error.value)


def test_the_average_of_the_weights_is_its_recursion():
    optimizer = make_optimizer("adamw", 0.1, 0, "none", average=0.8)
    params = {"kernel": jnp.ones((2, 3))}
    state = optimizer.init(params)
    assert averaged(state, params) is params  # no update yet
    expected = 0.0
    for t in range(30):
        grads = {"kernel": jnp.full((2, 3), float(t % 3 - 1))}
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        share = min(0.8, t / (t + 9))
        expected = share * expected + (1 - share) * np.asarray(params["kernel"])
    np.testing.assert_allclose(averaged(state, params)["kernel"], expected, rtol=1e-5)
    plain = make_optimizer("adamw", 0.1, 0, "none")
    assert averaged(plain.init(params), params) is params
