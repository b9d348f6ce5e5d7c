"""The trie allows exactly its sequences, limited by intervals and by hidden sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.arrays import NEG_INF
from onesug_jax.decode.trie import Free, build_trie, starting_with
from onesug_jax.errors import UserError
from onesug_jax.model.scores import Scores

EOS = 1
SEEDS = [0, 1, 2]


def random_paths(seed):
    """Up to sixty distinct short sequences over five tokens, with many common prefixes."""
    rng = np.random.default_rng(seed)
    return {tuple(rng.integers(2, 7, rng.integers(1, 6)).tolist()) for _ in range(60)}


@functools.partial(jax.jit, static_argnames=("first", "wanted"))
def best(constraint, states, logits, before, first, wanted):
    return constraint.best(states, Scores(logits), before, wanted, first)


def everything(constraint, states, logits, first, wanted=512):
    """All continuations of states `[1, K]` that exist: (beam, token, next state, total)."""
    beams = states.shape[1]
    size = 1 if first else 64  # few shapes, few programs
    states = np.pad(states, ((0, 0), (0, size - beams)))
    logits = np.pad(logits, ((0, 0), (0, size - beams), (0, 0)))
    before = np.where(np.arange(size) < beams, 0.0, NEG_INF).astype(np.float32)[None]
    output = best(constraint, states, logits, before, first, wanted)
    output = jax.tree.map(lambda x: np.asarray(x[0]), output)
    exists = output.totals > NEG_INF / 2
    columns = (output.parent, output.token, output.state, output.totals)
    return list(zip(*(x[exists].tolist() for x in columns), strict=True))


def walk(trie, interval=None):
    """Every (sequence, end node) that the trie allows, level by level from the root."""
    if interval is not None:
        trie = trie.between(np.array([interval]))
    ended, paths, states, first = [], [()], np.zeros((1, 1), np.int32), True
    while paths:
        logits = np.zeros((1, states.shape[1], 8), np.float32)
        live = []
        for beam, token, child, _ in everything(trie, states, logits, first):
            step = (*paths[beam], token), child
            (ended if token == EOS else live).append(step)
        paths = [path for path, _ in live]
        states = np.array([[node for _, node in live]], np.int32)
        first = False
    return ended


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_the_trie_allows_exactly_its_sequences(seed):
    """Each sequence occurs once, with its own rank."""
    paths = sorted(random_paths(seed))
    trie, rank_of_node = build_trie([(*p, EOS) for p in paths])
    sequences = walk(trie)
    assert sorted(p for p, _ in sequences) == sorted((*p, EOS) for p in paths)
    for path, node in sequences:
        assert paths[rank_of_node[node]] == path[:-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_interval_allows_exactly_its_ranks(seed):
    """`between` is exact at the end of sequences, even if the orders of texts and tokens differ."""
    paths = sorted(random_paths(seed), key=lambda p: p[::-1])
    trie, rank_of_node = build_trie([(*p, EOS) for p in paths])
    low, high = sorted(np.random.default_rng(seed).integers(0, len(paths) + 1, 2).tolist())
    ranks = sorted(int(rank_of_node[node]) for _, node in walk(trie, (low, high)))
    assert ranks == list(range(low, high))


def test_free_allows_every_token():
    """Without a closed set, tokens have the model's scores, best first."""
    logits = jnp.log(jnp.array([[[0.2, 0.3, 0.5]]]))
    start = Free().start(1)
    assert [token for _, token, _, _ in everything(Free(), start, logits, True)] == [2, 1, 0]
    some = Free(jnp.array([True, False, True]))
    assert [token for _, token, _, _ in everything(some, start, logits, True)] == [2, 0]


@pytest.mark.parametrize("leaves", [3, 40, 300])
def test_wide_and_narrow_nodes_give_their_best_children(leaves):
    paths = [(2, 3, EOS)] + [(3, 4 + i, EOS) for i in range(leaves)] + [(4, 400, 5, EOS)]
    trie, _ = build_trie(paths)
    logits = jax.random.normal(jax.random.key(leaves), (1, 3, 512))
    scores = jax.nn.log_softmax(logits)
    for states in ([[1, 2, 3]], [[1, 3, 3]]):  # with and without the wide node
        states = np.array(states, np.int32)
        found = everything(trie, states, logits, False, wanted=6)
        children = {1: [3], 2: range(4, 4 + leaves), 3: [400]}
        ranked = sorted(
            (
                (float(scores[0, beam, token]), beam, token)
                for beam, node in enumerate(states[0].tolist())
                for token in children[node]
            ),
            reverse=True,
        )
        assert [(beam, token) for beam, token, _, _ in found] == [x[1:] for x in ranked[:6]]


@pytest.mark.parametrize(
    "prefix, expected",
    [
        ("le", ["lego", "lego star wars", "lemon"]),
        ("lego ", ["lego star wars"]),
        ("x", []),
        ("", ["duplo", "lego", "lego star wars", "lemon", "玩具"]),
        ("玩", ["玩具"]),
    ],
)
def test_ranks_are_the_texts_that_start_with_the_prefix(prefix, expected):
    """Also for the empty prefix and without a match."""
    texts = ["duplo", "lego", "lego star wars", "lemon", "玩具"]
    low, high = starting_with(texts, prefix)
    assert texts[low:high] == expected


@pytest.mark.parametrize("paths", [[(2, EOS), (2, EOS)], [(2,), (2, 3)], [()]])
def test_ambiguous_sequences_are_refused(paths):
    """Repeated and empty sequences, and beginnings of others, have no end node of their own."""
    with pytest.raises(ValueError, match="sequence"):
        build_trie(paths)


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="empty"):
        build_trie([])


@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_sequences_are_not_allowed(seed):
    """The others are, also within an interval; nodes with only hidden sequences are closed."""
    paths = sorted(random_paths(seed))
    trie, rank_of_node = build_trie([(*p, EOS) for p in paths])
    rng = np.random.default_rng(seed)
    shown = rng.random(len(paths)) < 0.3
    trie = trie.showing(shown, rank_of_node)
    for low, high in [(0, len(paths)), sorted(rng.integers(0, len(paths) + 1, 2).tolist())]:
        ranks = sorted(int(rank_of_node[node]) for _, node in walk(trie, (low, high)))
        assert ranks == [r for r in range(low, high) if shown[r]]
    roots = everything(
        trie.between([[0, len(paths)]]), np.zeros((1, 1), np.int32), jnp.zeros((1, 1, 8)), True
    )
    assert {token for _, token, _, _ in roots} == {paths[r][0] for r in np.flatnonzero(shown)}


def test_padded_rows_and_tuples_give_the_same_trie():
    """Tokens take two bytes if they can."""
    paths = [(*p, EOS) for p in sorted(random_paths(0))]
    table = np.zeros((len(paths), max(map(len, paths)) + 2), np.int32)
    for row, path in zip(table, paths, strict=True):
        row[: len(path)] = path
    one, other = build_trie(paths), build_trie(table)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[0].token.dtype == np.uint16
    assert build_trie([(70_000, EOS)])[0].token.tolist() == [0, 70_000, EOS]
