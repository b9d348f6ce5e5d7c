"""Word overlap against sets of words, text by text."""

import numpy as np
import pytest

from onesug_jax.represent.overlap import WordOverlap, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("usb-c cable 3ft", {"usb", "c", "cable", "3ft"}),
        ("连衣裙 xl码", {"连", "衣", "裙", "xl", "码"}),
        ("café niño", {"café", "niño"}),
        ("ワンピース", set("ワンピース")),
        ("!!", set()),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text, expected):
    assert words(text) == expected


def test_equals_sets_of_words():
    queries = ["red dress", "dress red long", "!!", "blue", "连衣裙", "裙 red"]
    texts = ["red dress for her", "never seen", "!!", "裙子", "", "blue blue"]
    overlap = WordOverlap(queries)

    def slow(a, b):
        return len(words(a) & words(b)) / max(len(words(a) | words(b)), 1)

    for numbers in ([5, 0, 2], range(6), [1], []):
        wanted = [[slow(queries[n], text) for text in texts] for n in numbers]
        found = overlap.jaccard(numbers, texts)
        np.testing.assert_allclose(found, np.reshape(wanted, (len(numbers), len(texts))))
    assert overlap.jaccard([0, 1], []).shape == (2, 0)
