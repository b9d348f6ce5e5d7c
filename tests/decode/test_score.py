"""Scored candidates have the scores of beams, and of a slow pass over each of them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from onesug_jax.decode.beam import BeamConfig, beam_search, read_requests
from onesug_jax.decode.score import ScoreConfig, plant, score_trees
from onesug_jax.decode.suggester import Suggester
from onesug_jax.decode.trie import NEVER, Free, build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request, make_requests
from onesug_jax.tasks.vocabulary import Vocabulary

EOS, VOCAB, LENGTH = 1, 24, 6
SMALL = {"d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32}
T5 = ModelConfig(vocab_size=VOCAB, **SMALL, encoder_layers=2, decoder_layers=2)
FULL = ModelConfig(
    vocab_size=VOCAB,
    **SMALL,
    encoder_layers=1,
    decoder_layers=2,
    unroll=True,
    tie_embeddings=True,
    positions_per_layer=True,
    segments=True,
    copying=True,
    first_marker=20,
    last_marker=22,
)


def model_of(config):
    model, shapes = Seq2Seq(config), jnp.ones((1, 4), jnp.int32)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), shapes, shapes))["params"]
    return model, jax.tree.map(lambda leaf: 1.5 * leaf, params)


def requests(batch, length=9):
    """Random requests with markers and repeats, padded with 0."""
    tokens = np.random.default_rng(1).integers(2, 20, (batch, length)).astype(np.int32)
    tokens[:, ::4] = 20 + np.arange(len(range(0, length, 4)))
    tokens[0, length - 2 :] = 0
    return tokens


def candidates(seed, count):
    """Distinct sequences of all lengths over few tokens, so that many begin alike."""
    rng = np.random.default_rng(seed)
    found = {(*rng.integers(2, 6, rng.integers(1, LENGTH)).tolist(), EOS) for _ in range(count)}
    table = np.zeros((len(found), LENGTH), np.int32)
    for row, ids in zip(table, sorted(found, key=lambda ids: ids[::-1]), strict=True):
        row[: len(ids)] = ids
    return table


def alone(model, params, tokens, table, alpha):
    """Each candidate's score by a pass of its own through the training code."""
    shifted = np.pad(table, ((0, 0), (1, 0)))[:, :-1]
    logits = model.apply({"params": params}, np.repeat(tokens[None], len(table), 0), shifted)
    logs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), table[..., None], -1)[..., 0]
    return (logs * (table > 0)).sum(1) / (table > 0).sum(1) ** alpha


@pytest.mark.parametrize("config", [T5, FULL], ids=["t5", "copying"])
def test_scores_are_those_of_a_slow_pass_and_of_beams(config):
    """Two requests with candidates of their own, wide beams kept to one request's candidates."""
    model, params = model_of(config)
    tokens, alpha = requests(2), 0.7
    tables = [candidates(0, 40), candidates(1, 12)]
    trees, ends = plant(tables)
    score = jax.jit(
        lambda p, x, trees: score_trees(model, p, read_requests(model, p, x), trees, alpha)
    )
    scores = np.asarray(score(params, tokens, trees))
    for b, table in enumerate(tables):
        slow = alone(model, params, tokens[b], table, alpha)
        np.testing.assert_allclose(scores[b][ends[b]], slow, atol=1e-4)

    size = len(tables[0])
    search = BeamConfig(beams=size, returned=size, alpha=alpha, max_length=LENGTH)
    trie, rank_of_node = build_trie([tuple(row[row > 0].tolist()) for row in tables[0]])
    found = jax.jit(lambda p, x, c: beam_search(model, p, x, c, search))(params, tokens, trie)
    ranks = rank_of_node[np.asarray(found.states[0])]
    assert sorted(ranks) == list(range(size))
    np.testing.assert_allclose(scores[0][ends[0][ranks]], found.scores[0], atol=1e-4)


def test_the_vocabulary_in_blocks_is_the_vocabulary(monkeypatch):
    """Blocks that do not divide the number of nodes change nothing."""
    model, params = model_of(T5)
    tokens, table = requests(2), candidates(0, 40)
    trees, ends = plant([table, table])
    monkeypatch.setattr("onesug_jax.model.seq2seq._HEAD_ROWS", 2 * 7)
    assert trees.tokens.shape[1] % 7
    scores = score_trees(model, params, read_requests(model, params, tokens), trees, 0.0)
    slow = alone(model, params, tokens[1], table, 0.0)
    np.testing.assert_allclose(scores[1][ends[1]], slow, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_beginning_is_one_node(seed):
    """Following the paths gives the candidates back; no two nodes of a request are alike."""
    tables = [candidates(seed, 30), candidates(seed + 10, 3), candidates(seed + 20, 15)]
    trees, ends = plant(tables)
    for b, (table, end) in enumerate(zip(tables, ends, strict=True)):
        written = set()
        for row, node in zip(table, end, strict=True):
            depth = trees.depths[b, node]
            path = trees.paths[b, node, : depth + 1]
            assert path[0] == 0 and path[-1] == node and not trees.paths[b, node, depth + 1 :].any()
            assert trees.tokens[b, path[1:]].tolist() == row[:depth].tolist()
            assert row[depth] == EOS
            written |= {tuple(row[:t].tolist()) for t in range(1, depth + 1)}
        assert np.count_nonzero(trees.tokens[b]) == len(written)


NOUNS = ["lamp", "lantern", "laptop", "mug", "mat", "tent", "拖鞋", "拖把"]
QUERIES = {f"{noun} {word}": 1 + i for i, noun in enumerate(NOUNS) for word in ("red", "blue")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A random tiny model over the vocabulary of the queries."""
    folder = str(tmp_path_factory.mktemp("vocab"))
    vocabulary = Vocabulary.train(iter(QUERIES), folder, pieces=400, sid_levels=0, sid_codes=0)
    model, params = model_of(
        ModelConfig(vocab_size=vocabulary.size, **SMALL, encoder_layers=1, decoder_layers=1)
    )
    return model, params, Featurizer(vocabulary, FeatureSpec(input_length=32, target_length=24))


@pytest.fixture(scope="module")
def closed(parts):
    beams = BeamConfig(beams=16, returned=16, alpha=0.5, max_length=24)
    scoring = ScoreConfig(beams=2, max_length=24)
    return Suggester(*parts, beams, queries=QUERIES, batch_sizes=(4,), scoring=scoring)


def asked(*prefixes, candidates=tuple(QUERIES)):
    return [Request(prefix, candidates=candidates) for prefix in prefixes]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert [s.text for s in one] == [s.text for s in other]
        assert [s.score for s in one] == pytest.approx([s.score for s in other], abs=1e-4)


@pytest.mark.parametrize("mode", ["score", "hybrid"])
def test_with_all_queries_as_candidates_lists_are_those_of_beams(closed, mode):
    """Same queries, order and scores, prefix by prefix, known or not."""
    requests = asked("la", "m", "xqz", "拖", "")
    assert_alike(closed.suggest(requests, mode=mode), closed.suggest(requests))


def test_a_list_is_chosen_from_the_candidates_that_may_be_shown(closed):
    """Those that are known and start with the prefix; nothing else is scored."""
    given = ("mug red", "lamp blue", "laptop red", "lamp mauve")
    found = closed.suggest(asked("la", candidates=given), mode="score")[0]
    assert {s.text for s in found} == {"lamp blue", "laptop red"}


def test_beams_add_what_is_no_candidate(closed):
    """Two beams beside one poor candidate: it stands where its score puts it."""
    whole = closed.suggest(asked("la"))[0]
    worst = whole[-1]
    found = closed.suggest(asked("la", candidates=(worst.text,)), mode="hybrid")[0]
    assert len(found) > 1 and found[-1].text == worst.text
    assert {s.text for s in found} <= {s.text for s in whole}
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)


@pytest.mark.parametrize("mode", ["score", "hybrid"])
def test_without_candidates_beams_answer(closed, mode):
    """Where requests of both kinds meet, each has its own list, in order."""
    requests = [Request("la"), *asked("m"), *asked("la", candidates=("unknown",))]
    found = closed.suggest(requests, mode=mode)
    assert_alike(found, closed.suggest(requests))


def test_an_open_set_scores_what_it_is_given(parts):
    """Without known queries any text may be a candidate."""
    model, params, featurizer = parts
    free = Suggester(
        *parts, BeamConfig(beams=2, returned=2, max_length=24), batch_sizes=(4,), mode="score"
    )
    texts = ("brand new", "lamp red")
    found = free.suggest(asked("la", candidates=texts), k=2)[0]
    assert {s.text for s in found} == set(texts)
    longest = max(len(featurizer.target(text)) for text in texts)
    table = np.stack([np.resize([*featurizer.target(text), *[0] * 24], longest) for text in texts])
    tokens = featurizer.batch([Request("la")])[0]
    slow = dict(zip(texts, alone(model, params, tokens, table, 0.6), strict=True))
    assert [s.score for s in found] == pytest.approx([slow[s.text] for s in found], abs=1e-4)


def test_what_cannot_be_is_refused(parts):
    with pytest.raises(UserError, match="mode = 'fast': expected one of beam, score, hybrid"):
        Suggester(*parts, BeamConfig(), mode="fast")
    with pytest.raises(UserError, match="ScoreConfig.*candidates=0"):
        ScoreConfig(candidates=0)


def test_requests_bring_the_candidates_asked_for():
    """Related queries first, then the prefix's pool, without repeats; none where nobody asks."""

    class Known:
        def related(self, prefixes, histories, without=None, profiles=None):
            return [["b", "z"] for _ in prefixes]

        def worth(self, related, visitors=None):
            return [[] for _ in related]

        def vectors(self, prefixes, without=None):
            return None

        def pools(self, prefixes, k):
            return [["a", "b", "c", "d"][:k] for _ in prefixes]

    given = (Known(), ["x"], [[]], [[]])
    assert make_requests(*given)[0].candidates == ()
    assert make_requests(*given, candidates=4)[0].candidates == ("b", "z", "a", "c")


def test_nothing_that_never_was_is_scored():
    """`NEVER` stays far below any score."""
    assert NEVER < -1e20 and Free().start(1).shape == (1, 1)
