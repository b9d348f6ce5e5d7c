"""The trie allows exactly its sequences; intervals keep it to texts that start with a prefix."""

import jax.numpy as jnp
import numpy as np
import pytest

from onesug_jax.decode.trie import NEVER, Free, TextRanks, build_trie
from onesug_jax.errors import UserError

EOS = 1
SEEDS = [0, 1, 2]


def random_paths(seed):
    """Up to sixty distinct short sequences over five tokens: many shared beginnings."""
    rng = np.random.default_rng(seed)
    return {tuple(rng.integers(2, 7, rng.integers(1, 6)).tolist()) for _ in range(60)}


def walk(trie, interval=None):
    """Every sequence the trie lets out, by following `expand` level by level from the root."""
    if interval is not None:
        trie = trie.between(np.array([interval]))
    found, paths, states, first = [], [()], np.zeros((1, 1), np.int32), True
    while paths:
        log_probs = jnp.zeros((1, states.shape[1], 8))
        scores, tokens, children = map(np.asarray, trie.expand(states, log_probs, first))
        reached = []
        for k, path in enumerate(paths):
            for c in np.flatnonzero(scores[0, k] > NEVER / 2):
                step = (*path, int(tokens[0, k, c])), int(children[0, k, c])
                (found if step[0][-1] == EOS else reached).append(step)
        paths = [path for path, _ in reached]
        states = np.array([[node for _, node in reached]], np.int32)
        first = False
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_trie_holds_exactly_its_sequences(seed):
    """Following the children from the root gives every sequence once, with its own rank."""
    paths = sorted(random_paths(seed))
    trie, rank_of_node = build_trie([(*p, EOS) for p in paths])
    found = walk(trie)
    assert sorted(p for p, _ in found) == sorted((*p, EOS) for p in paths)
    for path, node in found:
        assert paths[rank_of_node[node]] == path[:-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_interval_lets_out_exactly_its_ranks(seed):
    """`between` is exact at the ends of sequences, even where text and token orders disagree."""
    paths = sorted(random_paths(seed), key=lambda p: p[::-1])
    trie, rank_of_node = build_trie([(*p, EOS) for p in paths])
    low, high = sorted(np.random.default_rng(seed).integers(0, len(paths) + 1, 2).tolist())
    ranks = sorted(int(rank_of_node[node]) for _, node in walk(trie, (low, high)))
    assert ranks == list(range(low, high))


def test_free_allows_every_token():
    """Without a closed set, each token scores what the model says."""
    log_probs = jnp.log(jnp.array([[[0.2, 0.3, 0.5]]]))
    scores, tokens, _ = Free().expand(Free().start(1), log_probs, True)
    assert jnp.array_equal(scores, log_probs)
    assert tokens.tolist() == [[[0, 1, 2]]]
    scores, _, _ = Free(jnp.array([True, False, True])).expand(Free().start(1), log_probs, True)
    assert (scores > NEVER / 2).tolist() == [[[True, False, True]]]


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
def test_text_ranks_are_the_texts_that_start_with_the_prefix(prefix, expected):
    """One interval of sorted texts per prefix, also for the empty prefix and for no match."""
    texts = ["duplo", "lego", "lego star wars", "lemon", "玩具"]
    low, high = TextRanks(texts).starting_with(prefix)
    assert texts[low:high] == expected


@pytest.mark.parametrize("paths", [[(2, EOS), (2, EOS)], [(2,), (2, 3)], [()]])
def test_ambiguous_sequences_are_refused(paths):
    """Repeats, beginnings of others, and empty sequences have no node of their own to end in."""
    with pytest.raises(ValueError, match="sequence"):
        build_trie(paths)


def test_an_empty_set_is_a_mistake_with_a_name():
    """No allowed query at all is told as such."""
    with pytest.raises(UserError, match="empty"):
        build_trie([])
