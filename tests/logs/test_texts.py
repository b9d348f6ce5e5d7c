"""Texts against a sorted list: places, files, and what is refused."""

import bisect
import pickle

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.texts import Texts, encode

LONG = ["abcdefgh", "abcdefgh\0", "abcdefghi", "abcdefghij"]  # that begin with the same eight bytes
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


def test_it_behaves_as_the_sequence_of_its_texts(texts):
    assert list(texts) == WORDS
    assert texts == WORDS
    assert texts != WORDS[1:]
    assert texts[-1] == WORDS[-1]
    assert texts[1:7:2] == WORDS[1:7:2]
    with pytest.raises(IndexError):
        texts[len(WORDS)]
    with pytest.raises(IndexError):
        texts[-len(WORDS) - 1]


def test_places_are_those_in_a_sorted_list(texts):
    keys = [encode(word) for word in WORDS]
    for asked in [*WORDS, "aa", "abcdefg", "abcdefghh", "c", "手手", "\U0010ffff", "\ud800"]:
        assert texts.find(asked) == (WORDS.index(asked) if asked in WORDS else -1)
        for start in (0, 3, len(WORDS)):
            assert texts.first(encode(asked), start) == bisect.bisect_left(
                keys, encode(asked), start
            )


def test_those_that_start_alike_are_one_range(texts):
    for asked in [*WORDS, "abc", "abcdefghx", "c", "\ud800"]:
        alike = [n for n, word in enumerate(WORDS) if word.startswith(asked)]
        assert list(range(*texts.range(asked))) == alike
        assert texts.starts(asked) == bool(alike)


def test_a_copy_is_alike_and_of_files_no_copy_of_the_texts(texts, tmp_path):
    copied = pickle.dumps(texts)
    assert pickle.loads(copied) == WORDS
    assert (b"abcdefghij" in copied) != (tmp_path / "words.txt").exists()


def test_none_at_all(tmp_path):
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
def test_texts_that_cannot_be_found_again_are_refused(tmp_path, words, message):
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
