"""T5 folders in the Hugging Face layout: read, written, refused, and compared with PyTorch.

The comparison runs where PyTorch is (requirements-compare.txt):
    ONESUG_COMPARE_PYTHON=compare/bin/python python -m pytest tests/model/test_hf.py
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onesug_jax.decode.beam import BeamConfig, beam_search
from onesug_jax.decode.trie import build_trie
from onesug_jax.errors import UserError
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.hf import read_t5, with_rows, write_t5
from onesug_jax.model.hf_config import read_config
from onesug_jax.model.safetensor_files import INDEX, WEIGHTS
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.train.mesh import unbox

SMALL = ModelConfig(
    vocab_size=40,
    d_model=16,
    num_heads=2,
    head_dim=6,
    d_ff=24,
    encoder_layers=3,
    decoder_layers=2,
    dropout=0.1,
    relative_buckets=10,
    relative_max_distance=20,
)
KINDS = {
    "T5": SMALL,
    "tied": dataclasses.replace(SMALL, tie_embeddings=True),
    "umT5": dataclasses.replace(SMALL, positions_per_layer=True),
    "umT5 tied": dataclasses.replace(SMALL, positions_per_layer=True, tie_embeddings=True),
}


@functools.cache
def shapes_of(config):
    tokens = jnp.ones((1, 4), jnp.int32)
    return jax.eval_shape(
        lambda: unbox(Seq2Seq(config).init(jax.random.key(0), tokens, tokens)["params"])
    )


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes_of(config))


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def folder(tmp_path):
    write_t5(str(tmp_path), SMALL, random_params(SMALL))
    return tmp_path


def changed_tensors(folder, change):
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)


def changed_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= values
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value != "left out"})
    )


# ------------------------------------------------------------------ writing and reading


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_written_parameters_are_read_bit_for_bit(config, tmp_path):
    """sqrt(d_model) is a power of two here, so the table's factor is exact."""
    params = random_params(config)
    write_t5(str(tmp_path), config, params)
    found_config, found, report = read_t5(str(tmp_path))
    assert found_config == config
    assert_same(found, params)
    assert report.values == config.parameters() and report.precision == "F32"
    assert report.tensors == len(load_file(tmp_path / WEIGHTS))
    assert read_config(str(tmp_path))[1] == ("umt5" if config.positions_per_layer else "t5")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".new")]


def test_other_widths_change_the_table_by_at_most_one_unit_in_the_last_place(tmp_path):
    config = dataclasses.replace(SMALL, d_model=24)
    params = random_params(config)
    write_t5(str(tmp_path), config, params)
    _, found, _ = read_t5(str(tmp_path))
    np.testing.assert_array_max_ulp(found.pop("embedding"), params.pop("embedding"), maxulp=1)
    assert_same(found, params)


def test_shards_are_read_as_one(folder):
    _, expected, _ = read_t5(str(folder))
    arrays = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, parts = sorted(arrays), ("a.safetensors", "b.safetensors")
    for i, part in enumerate(parts):
        save_file({name: arrays[name] for name in names[i::2]}, folder / part)
    index = {"weight_map": {name: parts[i % 2] for i, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(index))
    assert_same(read_t5(str(folder))[1], expected)

    index["weight_map"][names[0]] = parts[1]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{names[0]} is expected in b.safetensors"):
        read_t5(str(folder))
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b.safetensors: .* the file is missing"):
        read_t5(str(folder))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(folder, dtype):
    _, expected, _ = read_t5(str(folder))
    changed_tensors(folder, lambda a: a.update({k: v.astype(dtype) for k, v in a.items()}))
    _, found, report = read_t5(str(folder))
    assert report.precision == {"float16": "F16", "bfloat16": "BF16"}[np.dtype(dtype).name]
    for value, full in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, full, rtol=2**-8)


def test_copies_of_the_table_and_unused_tensors_are_ignored(folder):
    _, expected, _ = read_t5(str(folder))
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copy = "encoder.embed_tokens.weight"

    def add(arrays):
        arrays[copy], arrays[unused] = arrays["shared.weight"].copy(), np.zeros((10, 2), np.float32)

    changed_tensors(folder, add)
    assert_same(read_t5(str(folder))[1], expected)
    changed_tensors(folder, lambda arrays: arrays[copy].__iadd__(1))
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight differs from shared.weight"):
        read_t5(str(folder))


# ------------------------------------------------------------------ the head's factor


@pytest.mark.parametrize(
    ("family", "settings", "own_head", "scaled"),
    [
        ("t5", {"tie_word_embeddings": False}, True, False),  # T5 v1.1, Flan-T5
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),
        ("t5", {"tie_word_embeddings": True}, False, True),
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, False),
        ("mt5", {"tie_word_embeddings": False}, True, False),
        ("mt5", {"tie_word_embeddings": True, "transformers_version": "5.1.0"}, True, False),
        ("mt5", {"tie_word_embeddings": True, "transformers_version": "5.1.0"}, False, False),
        ("mt5", {"tie_word_embeddings": True, "transformers_version": "4.40.0"}, False, True),
        ("umt5", {"tie_word_embeddings": False}, True, False),  # Google's
        ("umt5", {"tie_word_embeddings": True, "transformers_version": "5.1.0"}, True, True),
        ("umt5", {"tie_word_embeddings": True}, False, True),
    ],
)
def test_outputs_are_scaled_by_family_and_version(tmp_path, family, settings, own_head, scaled):
    """Our head is the file's head with or without d_model**-0.5."""
    config = KINDS["umT5" if family == "umt5" else "T5"]
    write_t5(str(tmp_path), config, random_params(config))
    changed_config(
        tmp_path, **{"scale_decoder_outputs": "left out", "model_type": family, **settings}
    )
    if not own_head:
        changed_tensors(tmp_path, lambda arrays: arrays.pop("lm_head.weight"))
    arrays = load_file(tmp_path / WEIGHTS)
    head = arrays["lm_head.weight" if own_head else "shared.weight"].T * (0.25 if scaled else 1)
    found, params, report = read_t5(str(tmp_path))
    assert found.tie_embeddings == (scaled and not own_head)
    ours = params["embedding"].T if found.tie_embeddings else params["head"]
    np.testing.assert_array_equal(ours, head)
    warned = family == "umt5" and own_head and scaled
    copied = not own_head and not scaled
    assert ("umT5 was trained without" in str(report)) == warned
    assert ("copy of the token table" in str(report)) == copied


def test_a_config_with_only_the_name_of_its_class_is_read(tmp_path):
    config = KINDS["umT5"]
    write_t5(str(tmp_path), config, random_params(config))
    changed_config(tmp_path, model_type="left out")
    assert read_t5(str(tmp_path))[0] == config


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("shared.weight"), r"missing: shared.weight\. "),
        (lambda a: a.pop("lm_head.weight"), r"missing: lm_head.weight\. "),
        (
            lambda a: [a.pop(name) for name in sorted(a) if "EncDec" in name],
            r"missing: decoder.block.0.layer.1.EncDecAttention.q.weight, .* and 5 more",
        ),
        (
            lambda a: a.update({"classifier.weight": np.zeros(3, np.float32)}),
            r"too many: classifier.weight\. ",
        ),
        (
            lambda a: a.update({"decoder.final_layer_norm.weight": np.ones(17, np.float32)}),
            r"decoder.final_layer_norm.weight is \[17\], but config.json .* requires \[16\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    changed_tensors(folder, change)
    with pytest.raises(UserError, match=message):
        read_t5(str(folder))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "bert", "expected model_type t5 or mt5 or umt5, found 'bert'"),
        ("feed_forward_proj", "relu", "feed_forward_proj is 'relu'; supported is 'gated-gelu'"),
        ("feed_forward_proj", "left out", "feed_forward_proj is 'relu'"),
        ("is_gated_act", False, "is_gated_act is False; supported is True"),
        ("dense_act_fn", "gelu", "dense_act_fn is 'gelu'; supported is 'gelu_new'"),
        ("layer_norm_epsilon", 1e-5, "layer_norm_epsilon is 1e-05; supported is 1e-06"),
        ("pad_token_id", 1, "pad_token_id is 1; supported is 0"),
        ("eos_token_id", 2, "eos_token_id is 2; supported is 1"),
        ("decoder_start_token_id", 3, "decoder_start_token_id is 3; supported is 0"),
        ("d_kv", "left out", "d_kv is None; expected a number"),
        ("num_layers", 0, "num_layers is 0; expected a number of at least 1"),
        ("num_heads", 3, r"SelfAttention.q.weight is \[12, 16\], but config.json .* \[18, 16\]"),
        ("num_decoder_layers", 3, r"missing: decoder.block.2"),
    ],
)
def test_unsupported_settings_are_refused_by_name(folder, key, value, message):
    changed_config(folder, **{key: value})
    with pytest.raises(UserError, match=message):
        read_t5(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json: expected a T5 model"),
        ("config.json", b"{", "config.json: expected .* as JSON"),
        ("config.json", b"[]", "config.json: expected a JSON object"),
        (WEIGHTS, None, "found no such file; .*transformers converts a pytorch_model.bin"),
        (WEIGHTS, b"weights", "expected a safetensors file"),
    ],
)
def test_missing_and_damaged_files_are_named(folder, file, content, message):
    path = folder / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_t5(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": True}, "ModelConfig.segments=False"),
        ({"vector_dim": 8}, "FeatureSpec.items=False"),
        ({"soft_dim": 4}, "FeatureSpec.soft=False"),
    ],
)
def test_models_that_hugging_face_does_not_support_are_not_written(tmp_path, change, message):
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(UserError, match=message):
        write_t5(str(tmp_path / "out"), config, random_params(SMALL))
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="head"):
        write_t5(str(tmp_path), SMALL, random_params(KINDS["tied"]))


# ------------------------------------------------------------------ new rows


@pytest.mark.parametrize("config", [SMALL, KINDS["tied"]], ids=["T5", "tied"])
def test_new_rows_follow_the_old_ones_with_their_statistics(config):
    params = random_params(config)
    params["embedding"] = params["embedding"] * 3 + 2
    params["embedding"][30:] = 1000  # only rows of pieces count
    wider, found = with_rows(config, params, 4000, pieces=30, seed=1)
    assert wider == dataclasses.replace(config, vocab_size=4000)
    np.testing.assert_array_equal(found["embedding"][:40], params["embedding"])
    new, old = found["embedding"][40:], params["embedding"][:30]
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=0.3)
    np.testing.assert_allclose(new.std(0), old.std(0), rtol=0.1)
    assert len(np.unique(new, axis=0)) == len(new)
    if not config.tie_embeddings:
        mean = params["head"][:, :30].mean(1, keepdims=True)
        np.testing.assert_array_equal(found["head"][:, :40], params["head"])
        np.testing.assert_allclose(found["head"][:, 40:], np.repeat(mean, 3960, axis=1))
    again = with_rows(config, params, 4000, pieces=30, seed=1)[1]
    other = with_rows(config, params, 4000, pieces=30, seed=2)[1]
    np.testing.assert_array_equal(again["embedding"], found["embedding"])
    assert not np.array_equal(other["embedding"], found["embedding"])


def test_the_scores_of_old_tokens_do_not_change():
    params, tokens = random_params(SMALL), jnp.array([[5, 6, 7, 1]])
    before = jax.jit(Seq2Seq(SMALL).apply)({"params": params}, tokens, tokens)
    config, params = with_rows(SMALL, params, 128, pieces=30, seed=0)
    after = jax.jit(Seq2Seq(config).apply)({"params": params}, tokens, tokens)
    np.testing.assert_allclose(after[..., :40], before, atol=1e-5)
    average = jnp.repeat(before[..., :30].mean(-1, keepdims=True), 88, axis=-1)
    np.testing.assert_allclose(after[..., 40:], average, atol=1e-5)


# ------------------------------------------------------------------ comparison with PyTorch

_BEAMS, _LENGTH = 8, 12  # compare_t5.py's
_TOLERANCE = 3e-4  # of a sum of up to seven log-probabilities, each within 1e-4


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(a function that runs compare_t5.py, the folder of its models, their inputs)."""
    python = os.environ.get("ONESUG_COMPARE_PYTHON")
    if not python:
        pytest.skip("set ONESUG_COMPARE_PYTHON to a Python with requirements-compare.txt")
    home = tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(5)
    tokens = rng.integers(2, 96, (5, 30)).astype(np.int32)
    for row, keep in zip(tokens, (30, 1, 7, 18, 25), strict=True):
        row[keep:] = 0
    decoder = rng.integers(2, 96, (5, 26)).astype(np.int32)
    decoder[:, 0] = 0
    sequences = set()
    while len(sequences) < 40:
        sequences.add((*rng.integers(2, 20, rng.integers(1, 7)).tolist(), 1))
    allowed = np.zeros((len(sequences), _LENGTH), np.int32)
    for row, ids in zip(allowed, sorted(sequences), strict=True):
        row[: len(ids)] = ids
    inputs = {"tokens": tokens, "decoder": decoder, "allowed": allowed}
    np.savez(home / "inputs.npz", **inputs)
    script = pathlib.Path(__file__).with_name("compare_t5.py")

    def run(*words):
        command = [python, script, *map(str, words)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    run("make", home)
    return run, home, inputs


def lists_of(config, params, inputs, beams, alpha):
    trie, _ = build_trie([tuple(row[row > 0].tolist()) for row in inputs["allowed"]])
    search = BeamConfig(beams=beams, returned=beams, alpha=alpha, max_length=_LENGTH)
    model = Seq2Seq(config)
    hypotheses = jax.jit(lambda p, t, c: beam_search(model, p, t, c, search))(
        params, inputs["tokens"], trie
    )
    return np.asarray(hypotheses.sequences), np.asarray(hypotheses.scores)


def assert_computes_the_same(config, params, inputs, computed):
    """Compares logits, complete lists, and the lists of a narrow search.

    A narrow search of transformers finishes a query only if it is among the best K continuations,
    ours if it is among the best 2K. So our list contains all of their queries that score above our
    last one, and no position has a lower score.
    """
    logits = jax.jit(Seq2Seq(config).apply)({"params": params}, inputs["tokens"], inputs["decoder"])
    np.testing.assert_allclose(logits, computed["logits"], atol=1e-4, rtol=0)
    for name, alpha in (("alpha_0", 0.0), ("alpha_07", 0.7)):
        lists, scores = lists_of(config, params, inputs, len(inputs["allowed"]), alpha)
        np.testing.assert_array_equal(lists, computed[f"all_{name}"])
        np.testing.assert_allclose(scores, computed[f"all_{name}_scores"], atol=_TOLERANCE)
        lists, scores = lists_of(config, params, inputs, _BEAMS, alpha)
        theirs = computed[f"some_{name}_scores"]
        assert (scores >= theirs - _TOLERANCE).all()
        for b, row in enumerate(computed[f"some_{name}"].tolist()):
            ours = dict(zip(map(tuple, lists[b].tolist()), scores[b], strict=True))
            for ids, score in zip(map(tuple, row), theirs[b], strict=True):
                if score > scores[b, -1] + _TOLERANCE:
                    assert ours[ids] == pytest.approx(score, abs=_TOLERANCE)


MODELS = (
    *("t5_v1_1", "flan_t5", "t5_tied", "t5_tied_unscaled"),
    *("mt5", "mt5_tied", "umt5", "umt5_tied"),
)


@pytest.mark.parametrize("name", MODELS)
def test_pytorch_computes_the_same_before_and_after(compared, name, tmp_path):
    """Models of transformers are read, written again, and loaded by transformers."""
    run, home, inputs = compared
    computed = np.load(home / name / "computed.npz")
    config, params, report = read_t5(str(home / name))
    assert report.family == ("t5" if name == "flan_t5" else name.split("_")[0])
    assert_computes_the_same(config, params, inputs, computed)
    write_t5(str(tmp_path / "model"), config, params)
    run("run", tmp_path / "model", home / "inputs.npz", tmp_path / "computed.npz")
    assert_computes_the_same(config, params, inputs, np.load(tmp_path / "computed.npz"))
