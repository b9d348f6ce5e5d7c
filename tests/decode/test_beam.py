"""Beam search against a slow reference without caches, and against brute force."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode import beam
from onesug_jax.decode.beam import BeamConfig, beam_search
from onesug_jax.decode.trie import Free, build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.seq2seq import Seq2Seq
from tests.tiny_model import tiny_config

EOS = 1


def tiny(vocab_size, seed=0):
    """A random two-layer model; the scaled head makes the order of outputs stable."""
    model = Seq2Seq(tiny_config(vocab_size, encoder_layers=2, decoder_layers=2))
    shapes = jnp.ones((1, 4), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), shapes, shapes))["params"]
    params["head"] = params["head"] * 2.0
    return model, params


def requests(batch, length, vocab_size, seed=1):
    """Random requests of different lengths, padded with 0."""
    tokens = jax.random.randint(jax.random.key(seed), (batch, length), 2, vocab_size)
    lengths = jnp.arange(length - batch + 1, length + 1)[:, None]
    return jnp.where(jnp.arange(length) < lengths, tokens, 0)


def slow_beam(model, params, row, config, allowed=None):
    """The same search in plain Python, without caches and batches: a list of (score, sequence)."""
    forward = jax.jit(lambda t, d: model.apply({"params": params}, t, d))
    live, done = [(0.0, ())], []
    for _ in range(config.max_length):
        pool = []
        for score, sequence in live:
            padded = np.zeros((1, config.max_length), np.int32)
            padded[0, 1 : 1 + len(sequence)] = sequence
            logits = forward(row[None], padded)[0, len(sequence)]
            for token, value in enumerate(np.asarray(jax.nn.log_softmax(logits))):
                grown = (*sequence, token)
                if allowed is None or any(a[: len(grown)] == grown for a in allowed):
                    pool.append((score + float(value), grown))
        pool.sort(key=lambda item: -item[0])
        pool = pool[: 2 * config.beams]
        done += [
            (total / len(sequence) ** config.alpha, sequence)
            for total, sequence in pool
            if sequence[-1] == EOS
        ]
        live = [item for item in pool if item[1][-1] != EOS][: config.beams]
    done.sort(key=lambda item: -item[0])
    return done[: config.returned]


def as_lists(result, b):
    """One request's finished (score, sequence) pairs, best first."""
    pairs = []
    for score, row in zip(result.scores[b], result.sequences[b], strict=True):
        if score > NEG_INF / 2:
            row = [int(t) for t in row]
            end = row.index(EOS) + 1
            assert not any(row[end:]), "only padding follows the end of sequence"
            pairs.append((float(score), tuple(row[:end])))
    return pairs


def assert_same(found, expected):
    """Same sequences in the same order, same scores."""
    assert [s for _, s in found] == [s for _, s in expected]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], atol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("many", [18, 1024], ids=["caches that grow", "one cache"])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_equals_the_slow_reference(alpha, many, monkeypatch):
    monkeypatch.setattr(beam, "_MANY", many)  # the batch has 18 beams
    model, params = tiny(24)
    tokens = requests(3, 7, 24)
    config = BeamConfig(beams=6, returned=5, alpha=alpha, max_length=6)
    result = jax.jit(lambda t: beam_search(model, params, t, Free(), config))(tokens)
    for b in range(3):
        assert_same(as_lists(result, b), slow_beam(model, params, tokens[b], config))


@pytest.mark.long
def test_wide_beams_equal_brute_force():
    """With enough beams, the list is the exact ranking of all possible sequences."""
    vocab, length = 5, 4
    model, params = tiny(vocab)
    tokens = requests(1, 5, vocab)
    config = BeamConfig(beams=125, returned=20, alpha=0.6, max_length=length)
    result = jax.jit(lambda t: beam_search(model, params, t, Free(), config))(tokens)

    others = [t for t in range(vocab) if t != EOS]
    bodies = [b for size in range(length) for b in itertools.product(others, repeat=size)]
    targets = np.zeros((len(bodies), length), np.int32)
    for row, body in zip(targets, bodies, strict=True):
        row[: len(body) + 1] = (*body, EOS)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    repeated = np.repeat(tokens, len(bodies), 0)
    logits = jax.jit(model.apply)({"params": params}, repeated, shifted)
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)
    everything = []
    for body, scores in zip(bodies, picked[..., 0], strict=True):
        size = len(body) + 1
        everything.append((float(scores[:size].sum()) / size**config.alpha, (*body, EOS)))
    everything.sort(key=lambda item: -item[0])
    assert_same(as_lists(result, 0), everything[:20])


@pytest.mark.long
def test_a_trie_limits_the_list_and_does_not_change_scores():
    """Lists equal those of the slow constrained search; each state gives the sequence's rank."""
    model, params = tiny(24)
    rng = np.random.default_rng(0)
    allowed = sorted({(*rng.integers(2, 24, rng.integers(1, 5)), EOS) for _ in range(40)})
    allowed = [tuple(int(t) for t in s) for s in allowed]
    trie, rank_of_node = build_trie(allowed)
    tokens = requests(2, 7, 24)
    config = BeamConfig(beams=8, returned=8, alpha=0.6, max_length=6)
    result = jax.jit(lambda t, c: beam_search(model, params, t, c, config))(tokens, trie)
    for b in range(2):
        expected = slow_beam(model, params, tokens[b], config, allowed)
        found = as_lists(result, b)
        assert_same(found, expected)
        for (_, sequence), state in zip(found, result.states[b], strict=False):
            assert allowed[rank_of_node[int(state)]] == sequence


@pytest.mark.long
def test_each_request_has_its_own_interval():
    """A short interval gives a short list."""
    model, params = tiny(24)
    allowed = [(t, u, EOS) for t in range(2, 10) for u in range(2, 6)]
    trie, rank_of_node = build_trie(allowed)
    tokens = requests(2, 7, 24)
    config = BeamConfig(beams=8, returned=8, max_length=4)
    search = jax.jit(lambda t, c: beam_search(model, params, t, c, config))
    result = search(tokens, trie.between([[0, 3], [8, 32]]))
    ranks = [
        [int(rank_of_node[node]) for node in states[scores > NEG_INF / 2]]
        for states, scores in zip(np.asarray(result.states), result.scores, strict=True)
    ]
    assert sorted(ranks[0]) == [0, 1, 2]
    assert len(ranks[1]) == 8 and all(8 <= r < 32 for r in ranks[1])


@pytest.mark.long
def test_stops_when_no_live_beam_can_win():
    """A closed set of one-token queries takes two steps, not sixteen."""
    model, params = tiny(24)
    trie, _ = build_trie([(t, EOS) for t in range(2, 20)])
    config = BeamConfig(beams=4, returned=4, max_length=16)
    search = jax.jit(lambda t, c: beam_search(model, params, t, c, config))
    result = search(requests(2, 7, 24), trie)
    assert int(result.steps) == 2


def test_more_returned_than_beams_is_refused():
    with pytest.raises(UserError, match=r"BeamConfig.returned = 16 .* BeamConfig.beams = 8"):
        BeamConfig(beams=8, returned=16)
