"""Scored candidates have the scores of beams, and of a slow pass over each of them alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from onesug_jax.decode.beam import BeamConfig, beam_search, read_requests
from onesug_jax.decode.score import ScoreConfig, plant, score_trees, side_by_side
from onesug_jax.decode.suggester import Suggester
from onesug_jax.decode.trie import build_trie
from onesug_jax.errors import UserError
from onesug_jax.model import seq2seq
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.seq2seq import Seq2Seq, for_decoding
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request, make_requests
from onesug_jax.tasks.vocabulary import Vocabulary

EOS, VOCAB, LENGTH = 1, 24, 6
SMALL = {"d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32}
T5 = ModelConfig(vocab_size=VOCAB, **SMALL, encoder_layers=1, decoder_layers=2)
FULL = ModelConfig(
    vocab_size=VOCAB,
    **SMALL,
    encoder_layers=1,
    decoder_layers=2,
    unroll=True,
    tie_embeddings=True,
    positions_per_layer=True,
    segments=True,
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


@functools.partial(jax.jit, static_argnums=0)
def _logs(model, params, tokens, shifted):
    return jax.nn.log_softmax(model.apply({"params": params}, tokens, shifted))


def alone(model, params, tokens, table, alpha):
    """Each candidate's score by a pass of its own through the training code."""
    room = np.zeros((64, table.shape[1]), np.int32)  # one shape, one program
    room[: len(table)] = table
    shifted = np.pad(room, ((0, 0), (1, 0)))[:, :-1]
    logs = np.asarray(_logs(model, params, np.repeat(tokens[None], 64, 0), shifted))
    logs = np.take_along_axis(logs, room[..., None], -1)[: len(table), :, 0]
    return (logs * (table > 0)).sum(1) / (table > 0).sum(1) ** alpha


@functools.partial(jax.jit, static_argnums=(0, 4))
def scored(model, params, tokens, trees, alpha):
    return score_trees(model, params, read_requests(model, params, tokens), trees, alpha)


@pytest.mark.parametrize("config", [T5, FULL], ids=["t5", "per_layer"])
def test_scores_are_those_of_a_slow_pass_and_of_beams(config):
    """Two requests with candidates of their own, wide beams kept to one request's candidates."""
    model, params = model_of(config)
    ready = for_decoding(model, params)
    tokens, alpha = requests(2), 0.7
    tables = [candidates(0, 40), candidates(1, 12)]
    trees, ends = zip(*map(plant, tables), strict=True)
    scores = np.asarray(scored(*ready, tokens, side_by_side(trees, 2, 96), alpha))
    for b, table in enumerate(tables):
        slow = alone(model, params, tokens[b], table, alpha)
        np.testing.assert_allclose(scores[b][ends[b]], slow, atol=1e-4)

    size = len(tables[0])
    search = BeamConfig(beams=size, returned=size, alpha=alpha, max_length=LENGTH)
    trie, rank_of_node = build_trie(tables[0])
    found = jax.jit(lambda p, x, c: beam_search(ready[0], p, x, c, search))(ready[1], tokens, trie)
    ranks = rank_of_node[np.asarray(found.states[0])]
    assert sorted(ranks) == list(range(size))
    np.testing.assert_allclose(scores[0][ends[0][ranks]], found.scores[0], atol=1e-4)


def test_the_vocabulary_in_blocks_is_the_vocabulary(monkeypatch):
    """Blocks that do not divide the number of states change nothing."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 4)), rng.normal(size=(4, 24))
    whole = jax.nn.logsumexp(x @ kernel, axis=-1)
    for rows in (2, 8, 14, 18, 99):
        monkeypatch.setattr(seq2seq, "_HEAD_ROWS", rows)
        blocks = seq2seq._normalisers(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
        np.testing.assert_allclose(blocks, whole, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_beginning_is_one_node(seed):
    """Following the paths gives the candidates back; no two nodes are alike."""
    table = candidates(seed, 30)
    tree, ends = plant(table)
    written = set()
    for row, node in zip(table, ends, strict=True):
        depth = tree.depths[node]
        path = tree.paths[node, : depth + 1]
        assert path[0] == 0 and path[-1] == node and not tree.paths[node, depth + 1 :].any()
        assert tree.tokens[path[1:]].tolist() == row[:depth].tolist()
        assert row[depth] == EOS
        written |= {tuple(row[:t].tolist()) for t in range(1, depth + 1)}
    assert len(tree.tokens) == 1 + len(written) == 1 + np.count_nonzero(tree.tokens)


def test_trees_stand_side_by_side():
    """Filled up with roots to one number of nodes, and with empty trees to the batch."""
    trees = [plant(candidates(seed, count))[0] for seed, count in ((0, 40), (1, 3))]
    batch = side_by_side(trees, 3, 64)
    assert batch.tokens.shape == (3, 64) and batch.paths.shape == (3, 64, LENGTH)
    for b, tree in enumerate(trees):
        for row, leaf in zip(jax.tree.leaves(batch), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(row[b][: len(leaf)], leaf)
            assert not row[b][len(leaf) :].any() and not row[2].any()


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
def wide(parts):
    """Two beams and at most six candidates for sixteen queries, any of which may be listed."""
    beams = BeamConfig(beams=2, returned=2, alpha=0.5, max_length=24)
    scoring = ScoreConfig(candidates=6, beams=2, max_length=24)
    given = {"queries": QUERIES, "scoring": scoring, "must_start": False, "batch_sizes": (4,)}
    return Suggester(*parts, beams, **given)


@pytest.fixture(scope="module")
def exact(parts):
    """The two best of all queries for a prefix, by a slow pass over every one of them."""
    model, params, featurizer = parts
    table = featurizer.targets(list(QUERIES))
    table = np.pad(table, ((0, 0), (0, 24 - table.shape[1])))

    def best(prefix, among=tuple(QUERIES), k=2):
        tokens = np.zeros(32, np.int32)
        ids = featurizer.inputs(Request(prefix))
        tokens[: len(ids)] = ids
        scores = dict(zip(QUERIES, alone(model, params, tokens, table, 0.5), strict=True))
        return sorted(((scores[text], text) for text in among), reverse=True)[:k]

    return best


def asked(*prefixes, candidates=()):
    return [Request(prefix, candidates=candidates) for prefix in prefixes]


def assert_list(found, expected):
    assert [s.text for s in found] == [text for _, text in expected]
    assert [s.score for s in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("mode", ["beam", "score", "hybrid"])
def test_where_few_queries_may_be_listed_all_are_scored(parts, exact, mode):
    """Whatever the mode and the candidates: the exact list, prefix by prefix."""
    beams = BeamConfig(beams=8, returned=3, alpha=0.5, max_length=24)
    model = Suggester(*parts, beams, queries=QUERIES, batch_sizes=(4,))
    prefixes = ("lap", "la", "m", "拖")
    found = model.suggest(asked(*prefixes, candidates=("mug red",)), mode=mode)
    for prefix, texts in zip(prefixes, found, strict=True):
        starting = [text for text in QUERIES if text.startswith(prefix)]
        assert_list(texts, exact(prefix, starting, k=3))


def test_a_list_is_chosen_from_the_candidates_that_are_known(wide, exact):
    """And from the first six of those; nothing else is scored."""
    given = ("mug red", "lamp blue", "laptop red", "lamp mauve", "mat red", "mat blue", "tent red")
    found = wide.suggest(asked("la", "m", candidates=given), mode="score")
    among = [text for text in given[:6] if text in QUERIES]
    for prefix, texts in zip(("la", "m"), found, strict=True):
        assert_list(texts, exact(prefix, among))


def test_beams_add_what_is_no_candidate(wide, exact):
    """The best of candidates and beams, no text twice, each with its own score."""
    written = {s.text for s in wide.suggest(asked("la"))[0]}
    worst = min(exact("la", k=16))[1]
    for candidates in ((worst,), (worst, *written)):
        found = wide.suggest(asked("la", candidates=candidates), mode="hybrid")[0]
        assert_list(found, exact("la", {worst, *written}))


@pytest.mark.parametrize("mode", ["score", "hybrid"])
def test_without_candidates_beams_answer(wide, mode):
    """Where requests of both kinds meet, each has its own list, in order."""
    given = ("mug red", "lamp blue", "laptop red")
    requests = [*asked("la"), *asked("m", candidates=given), *asked("la", candidates=("unknown",))]
    found = wide.suggest(requests, mode=mode)
    written = wide.suggest(asked("la"))[0]
    for i in (0, 2):
        assert_list(found[i], [(s.score, s.text) for s in written])
    assert found[1] == pytest.approx(wide.suggest(requests[1:2], mode=mode)[0])


def test_an_open_set_scores_what_it_is_given(parts):
    """Without known queries any text may be a candidate."""
    model, params, featurizer = parts
    free = Suggester(
        *parts, BeamConfig(beams=2, returned=2, max_length=24), batch_sizes=(4,), mode="score"
    )
    texts = ("brand new", "lamp red")
    found = free.suggest(asked("la", candidates=texts), k=2)[0]
    assert {s.text for s in found} == set(texts)
    tokens = np.zeros(32, np.int32)
    ids = featurizer.inputs(Request("la"))
    tokens[: len(ids)] = ids
    table = np.zeros((2, 24), np.int32)
    for row, text in zip(table, texts, strict=True):
        row[: len(featurizer.target(text))] = featurizer.target(text)
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
        def related(self, prefixes):
            return [["b", "z"] for _ in prefixes]

        def vectors(self, prefixes):
            return None

        def pools(self, prefixes, k):
            return [["a", "b", "c", "d"][:k] for _ in prefixes]

    given = (Known(), ["x"], [[]], [[]])
    assert make_requests(*given)[0].candidates == ()
    assert make_requests(*given, candidates=4)[0].candidates == ("b", "z", "a", "c")


def test_candidates_that_the_largest_tree_does_not_hold_are_left_out(parts, exact):
    """The least searched first; in mode "beam", beams then write the list."""
    given = {"queries": QUERIES, "batch_sizes": (4,), "must_start": False}
    beams = BeamConfig(beams=16, returned=2, alpha=0.5, max_length=24)
    model = Suggester(*parts, beams, **given)
    popular = sorted(QUERIES, key=lambda text: -QUERIES[text])[:3]
    nodes = len(plant(parts[2].targets(popular))[0].tokens)
    model.shapes = dataclasses.replace(model.shapes, nodes=(nodes,))
    found = model.suggest(asked("la"), mode="score")[0]
    assert {s.text for s in found} <= set(popular)
    assert_list(model.suggest(asked("la"))[0], exact("la"))
