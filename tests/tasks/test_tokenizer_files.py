"""Hugging Face tokenizer files give the ids of the vocabulary."""

import json
import random

import pytest
import tokenizers

from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request
from onesug_jax.tasks.tokenizer_files import write_tokenizer
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.tasks.test_vocabulary import TEXTS, pretrained_pieces


def made(kind, folder) -> Vocabulary:
    if kind == "trained":
        return Vocabulary.train(iter(TEXTS), str(folder), pieces=400, sid_levels=2, sid_codes=3)
    pieces = pretrained_pieces(TEXTS, byte_fallback=kind == "mT5")
    return Vocabulary(pieces, sid_levels=2, sid_codes=3, first_marker=600)


@pytest.fixture(scope="module", params=["trained", "T5", "mT5"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = made(request.param, folder)
    write_tokenizer(str(folder), vocabulary)
    return vocabulary, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), folder


def test_every_text_has_the_same_ids(pair):
    vocabulary, tokenizer, _ = pair
    rng = random.Random(0)
    mixed = ["".join(rng.choices("redshol 手机壳tp", k=rng.randint(1, 20))) for _ in range(300)]
    mixed = [" ".join(text.split()) + " " * rng.randint(0, 1) for text in mixed if text.strip()]
    for text in (*TEXTS, *mixed, "lego ", "ＲＥＤ ½", "naïve 😀 x"):
        assert tokenizer.encode(text).ids == [*vocabulary.encode(text), vocabulary.eos_id], text


def test_every_id_has_a_name_and_texts_are_decoded(pair):
    vocabulary, tokenizer, _ = pair
    assert tokenizer.get_vocab_size() == vocabulary.size
    assert all(tokenizer.token_to_id(name) == i for name, i in vocabulary.tokens().items())
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_request_as_text_has_the_ids_of_the_encoder_input(pair):
    vocabulary, tokenizer, _ = pair
    featurizer = Featurizer(vocabulary, FeatureSpec())
    request = Request("red s", history=["lego"], related=["red shoes", "red 鞋"], profile=["女"])
    written = "<prefix>red s<related1>red shoes<related2>red 鞋<history1>lego<profile1>女"
    assert tokenizer.encode(written).ids == featurizer.inputs(request).tolist()


def test_the_files_have_the_special_tokens_and_the_pieces(pair):
    vocabulary, _, folder = pair
    config = json.loads((folder / "tokenizer_config.json").read_text())
    special = (config["pad_token"], config["eos_token"], config["unk_token"])
    assert special == ("<pad>", "</s>", "<unk>")
    assert (folder / "spiece.model").read_bytes() == vocabulary.model
