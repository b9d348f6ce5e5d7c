"""Texts against a sorted list: numbers, files, and errors."""

import bisect
import pickle

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.texts import Texts, encode

LONG = ["abcdefgh", "abcdefgh\0", "abcdefghi", "abcdefghij"]  # with the same first eight bytes
WORDS = ["", "a", "ab", *LONG, "b ", "é", "手", "手机", "\uffff", "\U0001f600"]


def paths(folder) -> tuple[str, str]:
    return str(folder / "words.txt"), str(folder / "places.npy")


@pytest.fixture(params=["of", "write", "save"])
def texts(request, tmp_path) -> Texts:
    if request.param == "write":
        Texts.write(*paths(tmp_path), WORDS, "words")
        return Texts.load(*paths(tmp_path))
    made = Texts.of([encode(word) for word in WORDS])
    if request.param == "of":
        return made
    made.save(*paths(tmp_path))
    return Texts.load(*paths(tmp_path))


def test_texts_are_a_sequence(texts):
    assert list(texts) == WORDS
    assert texts == WORDS
    assert texts != WORDS[1:]
    assert texts[-1] == WORDS[-1]
    assert texts[1:7:2] == WORDS[1:7:2]
    with pytest.raises(IndexError):
        texts[len(WORDS)]
    with pytest.raises(IndexError):
        texts[-len(WORDS) - 1]


def test_numbers_equal_those_of_a_sorted_list(texts):
    keys = [encode(word) for word in WORDS]
    for text in [*WORDS, "aa", "abcdefg", "abcdefghh", "c", "手手", "\U0010ffff", "\ud800"]:
        key = encode(text)
        assert texts.find(text) == (WORDS.index(text) if text in WORDS else -1)
        for start in (0, 3, len(WORDS)):
            assert texts.first(key, start) == bisect.bisect_left(keys, key, start)


def test_texts_with_one_beginning_are_a_range(texts):
    for prefix in [*WORDS, "abc", "abcdefghx", "c", "\ud800"]:
        expected = [n for n, word in enumerate(WORDS) if word.startswith(prefix)]
        assert list(range(*texts.range(prefix))) == expected
        assert texts.starts(prefix) == bool(expected)


def test_a_pickle_is_equal_and_of_loaded_texts_holds_only_paths(texts, tmp_path):
    copied = pickle.dumps(texts)
    assert pickle.loads(copied) == WORDS
    assert (b"abcdefghij" in copied) != (tmp_path / "words.txt").exists()


def test_no_texts(tmp_path):
    Texts.write(*paths(tmp_path), [], "words")
    texts = Texts.load(*paths(tmp_path))
    assert (len(texts), list(texts), texts.find(""), texts.first(b"a")) == (0, [], -1, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["b", "a"], "words, row 1: expected byte order"),
        (["a", "b", "b"], "words, row 2: expected byte order, each text once"),
        (["a\nb"], "words, row 0: .* one line"),
    ],
)
def test_unsorted_texts_and_line_ends_are_refused(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        Texts.write(*paths(tmp_path), words, "words")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([0, 2, 3]), "words.txt has 4 bytes where 3 are expected"),
        (np.array([0, 2, 4], np.int32), "places.npy holds no offsets"),
        (np.zeros(0, np.int64), "places.npy holds no offsets"),
    ],
)
def test_damage_is_named(tmp_path, offsets, message):
    Texts.write(*paths(tmp_path), ["a", "b"], "words")
    np.save(tmp_path / "places.npy", offsets)
    with pytest.raises(ValueError, match=message):
        Texts.load(*paths(tmp_path))


@pytest.mark.parametrize("prefix", ["", "a", "ab", "é", "裙", "zz"])
def test_the_characters_that_follow_a_beginning(prefix):
    words = sorted(["a", "ab", "abc", "abd", "ab c", "é", "éa", "裙子", "裙", "裙红"], key=encode)
    found = list(Texts.of([*map(encode, words)]).following(prefix))
    longer = [word for word in words if word.startswith(prefix) and word != prefix]
    assert found == list(dict.fromkeys(word[len(prefix)] for word in longer))
