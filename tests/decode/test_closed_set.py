"""Filters of indexed queries, and queries with equal ids."""

import numpy as np
import pytest

from onesug_jax.decode.closed_set import Filter, IndexedQueries
from onesug_jax.errors import UserError
from onesug_jax.tasks.features import FeatureSpec, Featurizer
from onesug_jax.tasks.vocabulary import Vocabulary

COUNTS = {
    "gun lamp": 9,
    "lamp": 5,
    "shotgun toy": 4,
    "toy gun": 1,
    "拖鞋": 3,
    "儿童拖鞋": 2,
    "nerf guns": 7,
}
TEXTS = sorted(COUNTS)


def shown(**fields):
    passed = Filter(**fields).of(TEXTS, np.array([COUNTS[text] for text in TEXTS]))
    return {text for text, yes in zip(TEXTS, passed, strict=True) if yes}


def test_a_blocked_term_hides_queries_with_it_as_a_word():
    """Queries with a longer word that contains the term remain."""
    assert shown(blocked=("GUN",)) == set(TEXTS) - {"gun lamp", "toy gun"}
    assert shown(blocked=("toy gun", "lamp")) == {"shotgun toy", "nerf guns", "拖鞋", "儿童拖鞋"}
    assert shown(blocked=("c++", "")) == set(TEXTS)


def test_a_term_of_a_script_without_spaces_hides_queries_with_it_anywhere():
    assert shown(blocked=("拖鞋",)) == {text for text in TEXTS if text.isascii()}


def test_rare_queries_are_hidden():
    assert shown(least_count=4) == {"gun lamp", "lamp", "shotgun toy", "nerf guns"}
    assert shown() == set(TEXTS)


def test_terms_are_read_from_a_file(tmp_path):
    """One a line, normalised, without repeats; comments and empty lines are ignored."""
    path = tmp_path / "blocked.txt"
    path.write_text("# house rules\nGun  # no toys either\n\n拖鞋\ngun\n", encoding="utf-8")
    assert Filter.read(str(path), 2) == Filter(("gun", "拖鞋"), 2)
    path.write_text("gun\nleast_count = 7  # while the shop is new\n", encoding="utf-8")
    assert Filter.read(str(path), 2) == Filter(("gun",), 7)
    path.write_text("plurals = yes\ngun\n", encoding="utf-8-sig")
    read = Filter.read(str(path))
    assert read == Filter(("gun",), plurals=True) and read.blocks("nerf guns")
    assert Filter.read(None) == Filter()
    with pytest.raises(UserError, match="none.txt: expected a file of blocked terms"):
        Filter.read(str(tmp_path / "none.txt"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="blocked.txt: expected UTF-8"):
        Filter.read(str(path))


@pytest.fixture(scope="module")
def featurizer(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("vocab"))
    vocabulary = Vocabulary.train(iter(COUNTS), folder, pieces=400, sid_levels=0, sid_codes=0)
    return Featurizer(vocabulary, FeatureSpec(target_length=8))


def test_tokens_of_a_batch_are_the_tokens_of_each_text(featurizer):
    """Also with the literal space mark, a trailing space, half a surrogate pair."""
    for texts in (TEXTS, ["a\u2581b", "lamp", "gun "], ["lamp \ud83d", "toy"], ["x" * 40]):
        table = featurizer.targets(texts)
        assert table.shape[1] <= 8
        for row, text in zip(table, texts, strict=True):
            assert row[: np.count_nonzero(row)].tolist() == featurizer.target(text).tolist()


def test_of_queries_truncated_to_equal_ids_the_most_searched_is_indexed(featurizer):
    queries = {"lamp": 3, "toy": 4}
    queries |= {
        "gun lamp gun lamp gun lamp gun lamp a": 5,
        "gun lamp gun lamp gun lamp gun lamp b": 6,
    }
    indexed = IndexedQueries.of(queries, featurizer)
    assert indexed.texts == ["gun lamp gun lamp gun lamp gun lamp b", "lamp", "toy"]
    assert indexed.counts.tolist() == [6, 3, 4]
    assert indexed.tokens.tolist() == featurizer.targets(indexed.texts).tolist()
