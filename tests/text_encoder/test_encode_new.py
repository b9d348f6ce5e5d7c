"""Stored and new vectors have the same bits as vectors of all texts encoded at once."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.text_encoder.encode_new import Encoded, encode_new
from onesug_jax.text_encoder.encoder import EncoderSpec, TextEncoder

WORDS = ["red", "blue", "lamp", "tent", "shoes", "手机", "case", "crème"]
TEXTS = sorted({" ".join(WORDS[(i * k) % 8] for k in range(1, 2 + i % 9)) for i in range(1, 90)})
SPEC = EncoderSpec(min_count=1, d_model=16, layers=2, heads=2, d_ff=32, max_length=16)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.scratch(TEXTS, SPEC)


def all_of(texts, encoder):
    out = np.empty((len(texts), 16), np.float16)
    assert encode_new(pa.array(texts), encoder, out) == len(texts)
    return out


@pytest.mark.long
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_stored_and_new_vectors_are_those_of_all_texts(encoder, share):
    rng = np.random.default_rng(int(10 * share))
    held = [text for text in TEXTS if rng.random() < share] + ["sold out", "zzz"]
    stored = Encoded(pa.array(held), all_of(held, encoder), encoder.fingerprint)
    out = np.empty((len(TEXTS), 16), np.float16)
    new = encode_new(pa.array(TEXTS), encoder, out, stored)
    assert new == len(set(TEXTS) - set(held))
    np.testing.assert_array_equal(out, all_of(TEXTS, encoder))


@pytest.mark.long
def test_whole_batches_give_single_texts_the_same_bits(encoder):
    together = encoder.encode(TEXTS, whole_batches=True)
    for row in (0, 7, len(TEXTS) - 1):
        alone = encoder.encode([TEXTS[row]], whole_batches=True)[0]
        np.testing.assert_array_equal(alone, together[row])
    np.testing.assert_allclose(encoder.encode(TEXTS), together, atol=2e-6)


def test_vectors_of_another_encoder_are_not_used(encoder):
    stored = Encoded(pa.array(TEXTS), np.ones((len(TEXTS), 16), np.float16), encoder.fingerprint)
    out = np.empty((len(TEXTS), 16), np.float16)
    assert encode_new(pa.array(TEXTS), encoder, out, stored) == 0 and (out == 1).all()
    stored = dataclasses.replace(stored, encoder="another")
    assert encode_new(pa.array(TEXTS), encoder, out, stored) == len(TEXTS)
    np.testing.assert_array_equal(out, all_of(TEXTS, encoder))
