"""The encoder-decoder against a slow numpy T5, its own parts against each other, and its counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.model.config import ModelConfig
from onesug_jax.model.layers import relative_bucket
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding

SMALL = ModelConfig(
    vocab_size=64,
    d_model=24,
    num_heads=2,
    head_dim=8,
    d_ff=40,
    encoder_layers=2,
    decoder_layers=3,
    relative_buckets=8,
    relative_max_distance=16,
)
PER_LAYER = dataclasses.replace(SMALL, positions_per_layer=True)


def build(config, seed=0, batch=3, length=11, target=6):
    """Model, parameters, and random padded inputs."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, config.vocab_size, (batch, length)).astype(np.int32)
    for row, keep in enumerate(rng.integers(length // 2, length + 1, batch)):
        tokens[row, keep:] = 0
    targets = rng.integers(2, config.vocab_size, (batch, target)).astype(np.int32)
    targets[:, 0] = 0
    model = Seq2Seq(config)
    boxed = jax.jit(model.init)(jax.random.key(seed), tokens, targets)
    return model, nn.meta.unbox(boxed), tokens, targets


def applied(model):
    """`model.apply`, compiled."""
    return jax.jit(model.apply, static_argnames="method")


def numpy_bucket(distance, bidirectional, buckets, max_distance):
    """T5's bucket of one integer distance, by the text of the paper."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset, distance = (buckets if distance > 0 else 0), abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    share = np.log(np.float32(distance / exact)) / np.log(max_distance / exact)
    return offset + min(buckets - 1, exact + int(share * (buckets - exact)))


def numpy_t5(config, params, tokens, targets):
    """One example at a time, one head at a time, float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    per_layer = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale["scale"]

    def bias(table, rows, columns, both):
        out = np.zeros((config.num_heads, rows, columns))
        for i in range(rows):
            for j in range(columns):
                b = numpy_bucket(j - i, both, config.relative_buckets, config.relative_max_distance)
                out[:, i, j] = table["table"][:, b]
        return out

    def attention(w, x, source, extra):
        total = np.zeros_like(x)
        for h in range(config.num_heads):
            scores = (x @ w["query"][:, h]) @ (source @ w["key"][:, h]).T + extra[h]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            total += weights @ (source @ w["value"][:, h]) @ w["out"][h]
        return total

    def mlp(w, x):
        gate = x @ w["gate"]
        inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        return (0.5 * gate * (1 + np.tanh(inner)) * (x @ w["up"])) @ w["down"]

    logits = []
    for row, target in zip(tokens, targets, strict=True):
        row = row[row > 0]
        x = p["embedding"][row] * config.d_model**0.5
        for i in range(config.encoder_layers):
            w = per_layer(p["encoder"], i)
            table = w["positions"] if config.positions_per_layer else p["encoder_positions"]
            extra = bias(table, len(row), len(row), True)
            y = norm(x, w["attention_norm"])
            x = x + attention(w["attention"], y, y, extra)
            x = x + mlp(w["mlp"], norm(x, w["mlp_norm"]))
        encoded = norm(x, p["encoder_norm"])
        x = p["embedding"][target] * config.d_model**0.5
        for i in range(config.decoder_layers):
            w = per_layer(p["decoder"], i)
            table = w["positions"] if config.positions_per_layer else p["decoder_positions"]
            extra = bias(table, len(target), len(target), False)
            extra = np.where(np.tril(np.ones(extra.shape[1:])), extra, -np.inf)
            y = norm(x, w["self_norm"])
            x = x + attention(w["self_attention"], y, y, extra)
            none = np.zeros((config.num_heads, 1, 1))
            x = x + attention(w["cross_attention"], norm(x, w["cross_norm"]), encoded, none)
            x = x + mlp(w["mlp"], norm(x, w["mlp_norm"]))
        logits.append(norm(x, p["decoder_norm"]) @ p["head"])
    return np.stack(logits)


@pytest.mark.long
@pytest.mark.parametrize("config", [SMALL, PER_LAYER], ids=["T5", "umT5"])
def test_equals_a_slow_numpy_t5(config):
    """Logits of padded batches equal a loop over examples, heads and positions in float64."""
    model, variables, tokens, targets = build(config)
    logits = jax.jit(model.apply)(variables, tokens, targets)
    np.testing.assert_allclose(
        logits, numpy_t5(config, variables, tokens, targets), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("both", [True, False])
def test_relative_buckets_follow_the_papers_words(both):
    """Every distance up to beyond the maximum falls into the bucket a scalar loop computes."""
    distances = np.arange(-300, 301)
    ours = relative_bucket(jnp.asarray(distances), both, 32, 128)
    slow = [numpy_bucket(int(d), both, 32, 128) for d in distances]
    assert ours.tolist() == slow


@pytest.mark.long
@pytest.mark.parametrize("config", [SMALL, PER_LAYER], ids=["plain", "per_layer"])
@pytest.mark.parametrize("unrolled", [False, True], ids=["stacked", "unrolled"])
def test_decoding_step_by_step_equals_the_whole_pass(config, unrolled):
    """Positions written one by one into the cache give the logits of teacher forcing."""
    model, variables, tokens, targets = build(config)
    whole = applied(model)(variables, tokens, targets)
    if unrolled:
        model, params = for_decoding(model, variables["params"])
        variables = {"params": params}
    encoded = applied(model)(variables, tokens, method="encode")
    cross = applied(model)(variables, encoded, method="cross_keys_values")
    cache = model.empty_cache(3, 6, 2)
    ancestry = jnp.broadcast_to(jnp.arange(2)[None, :, None], (3, 2, 6))
    step = jax.jit(lambda *args: model.apply(variables, *args, method="decode_step"))
    for t in range(6):
        beams = np.stack([targets[:, t], np.full(3, 5, np.int32)], axis=1)
        scores, cache = step(beams, jnp.int32(t), ancestry, cache, cross, tokens)
        np.testing.assert_allclose(scores.vocabulary[:, 0], whole[:, t], atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("config", [SMALL, PER_LAYER], ids=["plain", "per_layer"])
def test_packed_rows_equal_separate_rows(config):
    """Two examples in one row, separated by segment ids, score as if each had its own row."""
    model, variables, tokens, targets = build(config, batch=2, length=7, target=4)
    tokens[:, 5:] = 0
    separate = applied(model)(variables, tokens[:, :5], targets)
    packed = applied(model)(
        variables,
        tokens[:, :5].reshape(1, 10),
        targets.reshape(1, 8),
        np.repeat([1, 2], 5)[None] * (tokens[:, :5].reshape(1, 10) > 0),
        np.repeat([1, 2], 4)[None],
    )
    np.testing.assert_allclose(packed.reshape(separate.shape), separate, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("change", [{"unroll": True}, {"remat": "full"}, {"remat": "dots"}])
def test_unrolling_and_recomputation_change_no_number(change):
    """They use the same parameters and give the same loss and gradients."""
    model, variables, tokens, targets = build(SMALL)
    other = Seq2Seq(dataclasses.replace(SMALL, **change))

    def gradients(m):
        return jax.jit(jax.grad(lambda v: m.apply(v, tokens, targets).var()))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradients(model),
        gradients(other),
    )


@pytest.mark.long
def test_bfloat16_keeps_float32_parameters_and_logits():
    """bfloat16 is only the compute type; the result is close to float32's."""
    model, variables, tokens, targets = build(SMALL)
    low = Seq2Seq(dataclasses.replace(SMALL, dtype="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    logits = applied(low)(variables, tokens, targets)
    assert logits.dtype == jnp.float32
    reference = applied(model)(variables, tokens, targets)
    assert float(jnp.abs(logits - reference).mean()) < 0.05 * float(reference.std())


@pytest.mark.long
@pytest.mark.parametrize("change", [{"tie_embeddings": True}, {}, {"positions_per_layer": True}])
def test_parameter_count_is_the_arrays_count(change):
    """The configuration's arithmetic equals the number of values in the parameter tree."""
    config = dataclasses.replace(SMALL, **change)
    _, variables, _, _ = build(config)
    assert config.parameters() == sum(x.size for x in jax.tree.leaves(variables))


@pytest.mark.long
def test_flops_equal_xlas_own_count():
    """Matrix products dominate: XLA's count of unrolled layers is within 3 % of ours.

    XLA counts the body of a loop once, so reports use the formula instead of XLA's figure.
    """
    config = ModelConfig(
        vocab_size=512,
        d_model=256,
        num_heads=4,
        head_dim=64,
        d_ff=512,
        encoder_layers=3,
        decoder_layers=2,
        unroll=True,
    )
    _, variables, tokens, targets = build(config, batch=2, length=32, target=8)

    def count(c):
        compiled = jax.jit(Seq2Seq(c).apply).lower(variables, tokens, targets).compile()
        return compiled.cost_analysis()["flops"]

    ours = 2 * config.flops_per_example(32, 8)
    assert abs(count(config) / ours - 1) < 0.03
    assert count(dataclasses.replace(config, unroll=False)) < 0.7 * ours


@pytest.mark.parametrize("config", [SMALL, PER_LAYER], ids=["plain", "per_layer"])
def test_every_parameter_names_its_axes(config):
    """Every array has a logical name for each dimension."""
    model = Seq2Seq(config)
    tokens = jnp.ones((1, 4), jnp.int32)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, tokens))["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
