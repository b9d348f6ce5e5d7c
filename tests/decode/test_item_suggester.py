"""Lists of candidates: the model's scores, independent of the batch and its padding."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import meta

from onesug_jax.decode.item_suggester import TABLES, ItemSuggester
from onesug_jax.errors import UserError
from onesug_jax.logs.asof.items import Items
from onesug_jax.model import items as read
from onesug_jax.model.seq2seq import Seq2Seq, initial
from onesug_jax.tasks.features import Request
from tests.tiny_model import tiny_config

N, K, H, C = 12, 9, 3, 10
CONFIG = tiny_config(
    40,
    d_ff=16,
    tie_embeddings=True,
    unroll=True,
    vector_dim=4,
    count_columns=K,
    candidate_tokens=True,
    soft_id=3,
)


class Letters:
    """A featurizer of one id a letter."""

    def item_input(self, prefix, profile):
        return np.array([2, *[4 + ord(c) % 30 for c in prefix], 3, 1], np.int32)


@pytest.fixture(scope="module")
def suggester():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N + 3, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    tables = {
        "vectors": vectors,
        "words": rng.integers(1, 9, (N + 3, 2)).astype(np.int32),
        "word_weights": np.ones((N + 3, 2), np.float32),
        "lengths": np.arange(N + 3, dtype=np.float32),
        "prefix_vectors": vectors[:5].copy(),
    }
    params = meta.unbox(jax.jit(initial, static_argnums=0)(CONFIG, jax.random.key(0)))
    model = Seq2Seq(CONFIG)
    suggester = ItemSuggester(
        model,
        params,
        Letters(),
        tables,
        lambda n: f"q{n}",
        len,
        batch_sizes=(1, 4),
        sizes=(4, 10),
        pasts=(1,),
    )
    return suggester, model, params, tables


def request(seed, count):
    """A random request with `count` candidates."""
    rng = np.random.default_rng(seed)
    candidates = np.zeros(C, np.int32)
    candidates[:count] = rng.permutation(N)[:count] + 1
    items = Items(
        candidates,
        rng.normal(size=(C, K)).astype(np.float32),
        np.where(np.arange(H) < seed % 4, rng.integers(1, N, H), 0).astype(np.int32),
        rng.exponential(60, H).astype(np.float32),
        np.array([seed % 24, seed % 7], np.int32),
    )
    return Request("ab"[: 1 + seed % 2], items=items)


@pytest.mark.long
def test_a_list_is_the_candidates_by_their_log_probability(suggester):
    lists, model, params, tables = suggester

    @jax.jit
    def opening(tokens, items):
        rows = read.ItemTables(*(tables[name] for name in TABLES))
        encoded = model.apply({"params": params}, tokens, None, None, items, rows, method="encode")
        mask = model.given(tokens, items)
        return model.apply({"params": params}, encoded, mask, items, method="opening")

    for seed in (1, 3, 5, 7):
        one = request(seed, 3 + seed % 7)
        tokens = lists.featurizer.item_input(one.prefix, ())[None]
        typed = np.array([len(one.prefix)])
        arrays = (np.asarray(array)[None] for array in vars(one.items).values())
        logs = opening(tokens, read.Items(*arrays, typed, typed)).log_probabilities[0].tolist()
        expected = {f"q{n - 1}": x for n, x in zip(one.items.candidates, logs, strict=True) if n}
        listed = lists.suggest([one])[0]
        assert {s.text: s.score for s in listed} == pytest.approx(expected, abs=1e-4)
        scores = [s.score for s in listed]
        assert scores == sorted(scores, reverse=True) and max(scores) < 0


@pytest.mark.long
def test_lists_do_not_depend_on_the_batch_or_its_padding(suggester):
    lists, *_ = suggester
    requests = [request(seed, 1 + seed % 9) for seed in range(9)]
    for one, listed in zip(requests, lists.suggest(requests), strict=True):
        alone = lists.suggest([one])[0]
        assert [s.text for s in alone] == [s.text for s in listed]
        assert [s.score for s in alone] == pytest.approx([s.score for s in listed], abs=1e-4)


@pytest.mark.long
def test_k_and_the_filter_shorten_a_list(suggester):
    lists, *_ = suggester
    one = request(2, 8)
    texts = [s.text for s in lists.suggest([one])[0]]
    assert [s.text for s in lists.suggest([one], 3)[0]] == texts[:3]
    lists.passes = lambda text: text != texts[0]
    try:
        assert [s.text for s in lists.suggest([one])[0]] == texts[1:]
    finally:
        lists.passes = None
    with pytest.raises(UserError, match="expected 1 to 16"):
        lists.suggest([one], 17)


def test_a_request_without_candidates_has_an_empty_list(suggester):
    assert suggester[0].suggest([request(3, 0)]) == [[]]


def test_refreshed_rows_change_the_scores(suggester):
    lists, model, params, tables = suggester
    one = request(4, 4)
    items = dataclasses.replace(one.items, candidates=one.items.candidates.copy())
    items.candidates[0] = N + 1  # a spare row
    one = dataclasses.replace(one, items=items)
    before = {s.text: s.score for s in lists.suggest([one])[0]}
    changed = {name: tables[name].copy() for name in TABLES}
    changed["vectors"][N + 1] = changed["vectors"][items.history[0]]
    old = lists.tables
    lists.refresh(changed, N + 1, N + 2)
    after = {s.text: s.score for s in lists.suggest([one])[0]}
    lists.tables = old
    assert before.keys() == after.keys() and before != after
