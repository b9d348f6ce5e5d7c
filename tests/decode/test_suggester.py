"""The text model's lists: order, shapes, the closed set, the prefix, the filter, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from onesug_jax.decode.beam import BeamConfig
from onesug_jax.decode.closed_set import Filter
from onesug_jax.decode.suggester import Suggester, written_query
from onesug_jax.errors import UserError
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.tiny_model import tiny_config

NOUNS = ["lamp", "lantern", "laptop", "mug", "mat", "tent", "拖鞋", "拖把"]
QUERIES = {f"{noun} {word}": 1 + i for i, noun in enumerate(NOUNS) for word in ("red", "blue")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A random tiny model over the vocabulary of the queries."""
    folder = str(tmp_path_factory.mktemp("vocab"))
    vocabulary = Vocabulary.train(iter(QUERIES), folder, pieces=400, sid_levels=2, sid_codes=4)
    model = Seq2Seq(tiny_config(vocabulary.size))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens, tokens))["params"]
    spec = FeatureSpec(input_length=64, target_length=24)
    return model, params, Featurizer(vocabulary, spec)


@pytest.fixture(scope="module")
def closed(parts):
    config = BeamConfig(beams=16, returned=16, max_length=24)
    return Suggester(*parts, config, queries=QUERIES, batch_sizes=(1, 4))


@pytest.mark.long
def test_lists_are_the_indexed_queries_that_start_with_the_prefix(closed):
    """Each of them is listed once, best first."""
    for prefix in ("la", "m", "拖", "tent "):
        found = closed.suggest([Request(prefix)])[0]
        assert sorted(s.text for s in found) == sorted(q for q in QUERIES if q.startswith(prefix))
        scores = [s.score for s in found]
        assert scores == sorted(scores, reverse=True)


def test_an_unknown_or_empty_prefix_allows_all_indexed_queries(closed):
    for prefix in ("xqz", ""):
        assert set(closed([Request(prefix)])[0]) == set(QUERIES)


def test_replaced_parameters_give_the_lists_of_a_new_suggester(parts):
    model, params, featurizer = parts
    config = BeamConfig(beams=4, returned=4, max_length=24)
    others = jax.tree.map(lambda x: x[::-1] if x.ndim > 1 else x, params)
    requests = [Request("la"), Request("m")]
    one = Suggester(model, params, featurizer, config, queries=QUERIES)
    other = Suggester(model, others, featurizer, config, queries=QUERIES)
    expected = other.suggest(requests)
    assert one.suggest(requests) != expected
    one.use(others)
    assert one.suggest(requests) == expected


def test_lists_do_not_depend_on_the_batch(closed):
    """Seven requests in batches of various sizes and lengths."""
    requests = [
        Request(p, history=h) for p in ("la", "m", "") for h in ((), ("red mug", "blue lamp"))
    ] + [Request("拖")]
    for request, found in zip(requests, closed.suggest(requests), strict=True):
        alone = closed.suggest([request])[0]
        assert [s.text for s in alone] == [s.text for s in found]
        assert [s.score for s in alone] == pytest.approx([s.score for s in found], abs=1e-4)


def test_must_start_can_be_switched_off(parts):
    config = BeamConfig(beams=16, returned=16, max_length=24)
    open_list = Suggester(*parts, config, queries=QUERIES, must_start=False)
    assert set(open_list([Request("la")])[0]) == set(QUERIES)


@pytest.mark.long
def test_free_lists_hold_no_duplicates(parts):
    """Without a closed set, too, the texts of a list are distinct and not empty."""
    model, params, featurizer = parts
    params = {**params, "head": params["head"].at[:, 3:259].set(0)}  # single bytes are not text
    config = BeamConfig(beams=32, returned=32, max_length=6)
    free = Suggester(model, params, featurizer, config)
    texts = free([Request("la")])[0]
    assert texts and len(set(texts)) == len(texts) and all(texts)


def test_k_beyond_what_the_search_returns_is_refused(closed):
    with pytest.raises(UserError, match=r"k = 17.*BeamConfig.returned = 16"):
        closed.suggest([Request("la")], k=17)
    assert len(closed.suggest([Request("la")], k=3)[0]) == 3


class Ids:
    """Two levels of four codes; each id has four consecutive queries in the order of texts."""

    ids = np.array([(n // 4 % 4, n // 8) for n in range(len(QUERIES))], np.uint16)

    def numbers(self, codes):
        numbers = np.flatnonzero((self.ids == np.asarray(codes)).all(axis=1))
        counts = [QUERIES[sorted(QUERIES)[n]] for n in numbers]
        return numbers[np.argsort(-np.array(counts), kind="stable")]


def test_written_ids_give_their_queries(parts):
    """Better ids come first; within an id, more popular queries come first."""
    config = BeamConfig(beams=16, returned=16, max_length=24)
    model = Suggester(*parts, config, queries=QUERIES, ids=Ids(), batch_sizes=(1,))
    assert model.config.max_length == 3, "two codes and the end"
    found = model.suggest([Request("")])[0]
    assert {s.text for s in found} == set(QUERIES)
    scores = [s.score for s in found]
    assert scores == sorted(scores, reverse=True)
    texts = sorted(QUERIES)
    groups = {}
    for s in found:
        groups.setdefault(s.score, []).append(s.text)
    assert len(groups) == len(np.unique(Ids.ids, axis=0))
    for group in groups.values():
        code = Ids.ids[texts.index(group[0])]
        assert group == [texts[n] for n in Ids().numbers(code)]
    started = model.suggest([Request("la")])[0]
    assert sorted(s.text for s in started) == sorted(q for q in QUERIES if q.startswith("la"))


def test_ids_need_the_indexed_queries(parts):
    with pytest.raises(UserError, match="closed=True"):
        Suggester(*parts, BeamConfig(), ids=Ids())


def test_a_filter_can_be_replaced(parts):
    """Hidden queries are in no list until they are shown again."""
    config = BeamConfig(beams=16, returned=16, max_length=24)
    model = Suggester(*parts, config, queries=QUERIES, shown=Filter(("red",)), batch_sizes=(1,))
    request, blue = Request("la"), {"lamp blue", "lantern blue", "laptop blue"}
    assert {s.text for s in model.suggest([request])[0]} == blue
    model.show(Filter(least_count=3))
    assert {s.text for s in model.suggest([request])[0]} == {"laptop blue", "laptop red"}
    assert model.suggest([Request("lamp")]) == [[]]
    with pytest.raises(UserError, match="none of the 16 indexed queries passes"):
        model.show(Filter(least_count=99))
    model.show(None)
    assert len(model.suggest([request])[0]) == 6


def test_a_filter_needs_indexed_queries(parts):
    with pytest.raises(UserError, match="closed=True"):
        Suggester(*parts, BeamConfig(), shown=Filter(("red",)))


def test_a_written_query_with_half_a_character_is_empty(parts):
    vocabulary = parts[2].vocabulary
    ids = np.array([*vocabulary.encode("Lego 鱻"), vocabulary.eos_id])  # 鱻 is three pieces
    assert written_query(vocabulary, ids) == "lego 鱻"
    assert written_query(vocabulary, np.delete(ids, -2)) == ""
