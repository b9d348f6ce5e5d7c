"""Candidates and written queries share one distribution; written queries start with the prefix."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.align.candidate_lists import candidate_scores
from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.beam import BeamConfig, search
from onesug_jax.decode.begun import Pieces
from onesug_jax.decode.both_ways import WritingConfig, leaves_room, merged
from onesug_jax.decode.reading import read_requests
from onesug_jax.decode.trie import Free, build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.candidates import either_way
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding
from tests.item_cases import CONFIG, features, items, params, tables, tokens

EOS = 1
TEXTS = [(4, EOS), (4, 5, EOS), (2, 6, EOS), (3, EOS), (3, 3, EOS)]
TABLE = np.array([[*text, 0, 0][:3] for text in TEXTS], np.int32)


@pytest.fixture(scope="module")
def ready():
    return for_decoding(Seq2Seq(CONFIG), params())


def read_of(ready, batch):
    model, weights = ready
    example, arrays = items(batch=batch), tables()

    @jax.jit
    def read(weights, arrays):
        return read_requests(model, weights, tokens(batch), items=example, tables=arrays)

    return read(weights, arrays)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def written_by(model, weights, read, constraint, config):
    return search(model, weights, read, constraint, config)


def trained_log_probabilities(example, place, table=TABLE):
    """`log p(q | x)` of every text of a table, `[B, texts]`, by the training code."""
    rows = np.repeat(np.arange(len(place)), len(table))
    target = np.tile(table, (len(place), 1))
    shifted = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
    text, example = jax.tree.map(lambda x: np.asarray(x)[rows], (tokens(len(place)), example))

    @jax.jit
    def score(weights, arrays):
        args = (text, shifted, None, None, None, example, arrays)
        return Seq2Seq(CONFIG).apply({"params": weights}, *args, method="score")

    scores = score(params(), tables())
    written = jnp.sum(jnp.where(target > 0, scores.log_probabilities(target), 0.0), axis=1)
    candidates = scores.candidates - scores.log_partition()[:, :1]
    logs = either_way(candidates, written, jnp.asarray(place)[rows])
    return np.asarray(logs).reshape(len(place), len(table))


@pytest.mark.long
def test_decoding_gives_the_log_probabilities_of_training(ready):
    """Beams over a trie and candidate tokens have the probabilities of training."""
    example, arrays = items(), tables()
    read = read_of(ready, 2)
    by_pieces = trained_log_probabilities(example, np.zeros(2, int))
    config = BeamConfig(beams=5, returned=5, alpha=0.0, max_length=3)
    trie, rank_of_node = build_trie(TABLE)
    result = written_by(*ready, read, trie, config)
    for b in range(2):
        ranks = rank_of_node[np.asarray(result.states[b])]
        np.testing.assert_allclose(result.scores[b], by_pieces[b][ranks], atol=1e-4)

    both = trained_log_probabilities(example, np.array([2, 4]))
    own = np.asarray(read.opening.log_probabilities)[[0, 1], [1, 3]]
    np.testing.assert_allclose(np.logaddexp(own[:, None], by_pieces), both, atol=1e-4)
    scores = jax.jit(functools.partial(candidate_scores, Seq2Seq(CONFIG)))(
        params(),
        {
            "encoder_input_tokens": tokens(),
            **features(example),
        },
        arrays,
    )
    np.testing.assert_allclose(scores, read.opening.log_probabilities, atol=1e-5)


PIECES = [b"", b"", b" a", b"b", b" ab", b"bc", b" ", b""]


def spell(sequence):
    return b"".join(PIECES[token] for token in sequence)


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["ab", "a", "abb"])
def test_written_queries_complete_the_prefix(ready, prefix):
    """Wide beams find exactly the likeliest short texts that start with the prefix."""
    read = read_of(ready, 1)
    constraint = Pieces(PIECES, EOS).begun([prefix], 1, longest=6)
    config = BeamConfig(beams=64, returned=16, alpha=0.0, max_length=4)
    result = written_by(*ready, read, constraint, config)
    texts = [
        sequence
        for n in (1, 2, 3)
        for sequence in itertools.product([2, 3, 4, 5, 6], repeat=n)
        if spell(sequence).startswith(b" " + prefix.encode())
    ]
    table = np.array([[*sequence, EOS, 0, 0, 0][:4] for sequence in texts], np.int32)
    expected = np.sort(trained_log_probabilities(items(batch=1), np.zeros(1, int), table)[0])[::-1]
    written = np.asarray(result.sequences[0])[np.asarray(result.scores[0]) > NEG_INF / 2]
    assert all(spell(row[row != EOS]).startswith(b" " + prefix.encode()) for row in written)
    count = min(len(expected), 16)
    assert len(written) == count
    np.testing.assert_allclose(np.asarray(result.scores[0])[:count], expected[:count], atol=1e-4)


@pytest.mark.long
def test_the_mass_of_candidates_lowers_the_scores_of_beams(ready):
    """Candidates take their share of the first softmax only."""
    read = read_of(ready, 1)
    config = BeamConfig(beams=8, returned=8, alpha=0.0, max_length=3)
    with_mass = written_by(*ready, read, Free(), config)
    without = written_by(*ready, dataclasses.replace(read, opening=None), Free(), config)
    np.testing.assert_array_equal(with_mass.sequences, without.sequences)
    share = np.exp(np.asarray(read.opening.log_probabilities)).sum()
    mask = np.asarray(without.scores) > NEG_INF / 2
    assert mask.sum() >= 2
    difference = np.asarray(without.scores - with_mass.scores)[mask]
    np.testing.assert_allclose(difference, -np.log1p(-share), atol=1e-3)


def test_a_list_has_room_if_candidates_are_few_or_unlikely():
    logs = np.log(np.array([[0.5, 0.45], [0.5, 0.2], [0.97, 1e-9]]))
    logs[2, 1] = -1e9
    config = WritingConfig(least_share=0.1)
    shown = np.array([2, 2, 1])
    assert leaves_room(logs, shown, 2, config).tolist() == [False, True, True]
    for fill_share, fills in ((0.02, True), (0.04, False), (1.0, False)):
        other = dataclasses.replace(config, fill_share=fill_share)
        assert leaves_room(logs, shown, 2, other).tolist() == [False, True, fills]
    assert not leaves_room(logs, shown, 1, WritingConfig(least_share=1.0)).any()
    with pytest.raises(UserError, match="least_share"):
        WritingConfig(least_share=1.5)


def test_a_written_candidate_is_listed_once_with_the_summed_probability():
    queries = merged([("a", np.log(0.3)), ("b", np.log(0.2))], {"b": np.log(0.2), "c": -0.1}, 2)
    assert [(text, new) for text, _, new in queries] == [("c", True), ("b", False)]
    assert queries[1][1] == pytest.approx(np.log(0.4))
