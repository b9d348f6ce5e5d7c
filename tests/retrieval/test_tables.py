"""Rows of the tables of queries: vectors, words, weights, and spare rows for new queries."""

import numpy as np
import pytest

from onesug_jax.retrieval.tables import WORDS, QueryTables, words_of

QUERIES = ["red lamp", "red tent", "tent"]


def tables(spare=0):
    vectors = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    return QueryTables.build(QUERIES, vectors, np.eye(2, dtype=np.float32), spare)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red red lamp", ["red", "lamp"]),
        ("手机壳", ["手机", "机壳"]),
        ("灯", ["灯"]),
        ("", []),
        (" ".join("abcdefghijk"), list("abcdefgh")),
    ],
)
def test_words_are_distinct_and_scripts_without_spaces_give_pairs(text, words):
    assert words_of(text) == words and len(words) <= WORDS


def test_row_0_is_none_and_a_query_has_the_row_behind_its_number():
    made = tables()
    assert not made.vectors[0].any() and not made.words[0].any()
    assert made.vectors[1] == pytest.approx([0.6, 0.8])
    assert made.vectors[2] == pytest.approx([0, 1]) and not made.vectors[3].any()
    red = [made.words[1, 0], made.words[2, 0]]
    assert red[0] == red[1] > 0, "the same word has the same code"
    assert made.words[2, 1] == made.words[3, 0] != red[0]
    assert made.word_weights[1, 0] == pytest.approx(np.log(1 + 3 / 2)), "in two of three queries"
    assert made.word_weights[1, 1] == pytest.approx(np.log(1 + 3))
    assert np.array_equal(made.prefix_vectors, [[0, 0], [1, 0], [0, 1]])


def test_a_new_query_fills_a_spare_row_and_no_shape_changes():
    made = tables(spare=2)
    shapes = [made.vectors.shape, made.words.shape]
    made.add([3], ["blue lamp"], lambda texts: np.array([[0.0, 5.0]]))
    assert [made.vectors.shape, made.words.shape] == shapes == [(6, 2), (6, WORDS)]
    assert made.vectors[4] == pytest.approx([0, 1])
    assert made.words[4, 1] == made.words[1, 1], "lamp"
    assert made.word_weights[4, 0] == pytest.approx(np.log(1 + 3)), "an unseen word counts as rare"
    made.add([], [], None)


def test_versions_of_similar_size_have_the_same_shapes():
    vectors = np.eye(5, dtype=np.float32)
    many = QueryTables.build([*"abcde"], vectors, vectors[:2], 2, multiple=8)
    few = QueryTables.build([*"abcd"], vectors[:4], vectors[:3], 2, multiple=8)
    exact = QueryTables.build([*"abcd"], vectors[:4], vectors[:3], 2)
    for name in ("vectors", "words", "word_weights", "lengths", "prefix_vectors"):
        padded, other, plain = (getattr(one, name) for one in (few, many, exact))
        assert padded.shape == other.shape and len(padded) == 8
        assert np.array_equal(padded[: len(plain)], plain) and not padded[len(plain) :].any()


def test_every_query_needs_a_vector():
    with pytest.raises(ValueError, match="3 queries but 2 vectors"):
        QueryTables.build(QUERIES, np.eye(2), np.eye(2))
