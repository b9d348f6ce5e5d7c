"""Training from a Hugging Face T5 folder, and exporting to one."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from onesug_jax import main
from onesug_jax.align.pretrain import pretrain_stage
from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.model.hf import read_t5, write_t5
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.pipeline import bundle
from onesug_jax.pipeline.workdir import Manifest, WorkDir
from onesug_jax.stages import pretrained, texts
from onesug_jax.stages.trained import BUNDLED
from onesug_jax.tasks.features import FeatureSpec
from onesug_jax.tasks.vocabulary import Vocabulary
from onesug_jax.train.checkpoint import Checkpoints
from onesug_jax.train.mesh import unbox
from tests.tiny_model import tiny_config

QUERIES = [f"{a} {b}" for a in ("red", "blue", "lego") for b in ("shoes", "train", "手机壳")]
THEIRS = tiny_config(600, decoder_layers=2, dropout=0.1)


@pytest.fixture
def folder(tmp_path):
    """A pretrained model whose pieces have no Chinese characters, like T5's."""
    tokens = jnp.ones((1, 4), jnp.int32)
    params = unbox(jax.jit(Seq2Seq(THEIRS).init)(jax.random.key(3), tokens, tokens)["params"])
    path = tmp_path / "t5"
    write_t5(str(path), THEIRS, params)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(query for query in QUERIES if query.isascii()),
        model_writer=out,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (path / "spiece.model").write_bytes(out.getvalue())
    return path


@pytest.fixture
def vocabulary(folder, tmp_path):
    path = str(folder / "spiece.model")
    return Vocabulary.adopt(path, str(tmp_path / "v"), rows=600, sid_levels=2, sid_codes=4)


def ours(vocabulary, **changes):
    markers = {"first_marker": vocabulary.first_marker, "last_marker": vocabulary.last_marker}
    return dataclasses.replace(THEIRS, vocab_size=vocabulary.size, **markers, **changes)


@pytest.mark.long
def test_the_vocabulary_stage_uses_the_models_pieces(folder, tmp_path, capsys):
    @dataclasses.dataclass
    class Context:
        work: WorkDir
        seed: int = 0

    work = WorkDir(str(tmp_path / "work"))
    CompletionIndex.from_counts(QUERIES, [1] * len(QUERIES)).save(work.mined)
    texts.vocab(Context(work), pretrained=str(folder), sid_levels=2, sid_codes=4)
    made = Vocabulary.load(work.vocab)
    assert made.first_marker == 600 and made.sid_levels == 2
    assert made.model == (folder / "spiece.model").read_bytes()
    output = capsys.readouterr().out
    assert f"{made.pieces} pieces of t5, the other {600 - made.pieces} rows" in output
    assert "3 of 9 indexed queries hold characters that these pieces lack" in output


@pytest.mark.long
def test_parameters_that_a_t5_lacks_are_initialised_and_named(folder, vocabulary, capsys):
    config = ours(vocabulary, soft_dim=6, soft_id=vocabulary.soft_id, segments=True)
    pretrained.check_fits(str(folder), config, vocabulary)
    init = pretrain_stage(config).init_fn
    params = pretrained.read(str(folder), config, vocabulary, init, 7)
    scratch = unbox(jax.jit(init)(jax.random.key(7)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, scratch)
    np.testing.assert_array_equal(params["soft_projection"], scratch["soft_projection"])
    _, theirs, _ = read_t5(str(folder))
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], theirs["encoder"])
    np.testing.assert_array_equal(params["embedding"][:600], theirs["embedding"])
    output = capsys.readouterr().out
    assert "43 tensors" in output
    assert f"new: {vocabulary.size - 600} rows of tokens, soft_projection" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 24}, "d_model 16, and ModelConfig.d_model is 24; set --gin.ModelConfig.d_mod"),
        ({"decoder_layers": 1, "d_ff": 31}, "d_ff 32, and ModelConfig.d_ff is 31"),
        ({"positions_per_layer": True}, "positions_per_layer False"),
    ],
)
def test_the_first_field_that_differs_is_named(folder, vocabulary, change, message):
    with pytest.raises(UserError, match=message):
        pretrained.check_fits(str(folder), ours(vocabulary, **change), vocabulary)


def test_a_public_size_is_named_by_its_file(folder, vocabulary):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"d_model": 512}))
    with pytest.raises(UserError, match="choose its size: --gin.MODEL=small"):
        pretrained.check_fits(str(folder), ours(vocabulary), vocabulary)


def test_a_tied_and_an_untied_head_are_distinguished(folder, vocabulary):
    config = ours(vocabulary, tie_embeddings=True)
    with pytest.raises(UserError, match="set --gin.ModelConfig.tie_embeddings=False"):
        pretrained.read(str(folder), config, vocabulary, pretrain_stage(config).init_fn, 0)


def test_another_vocabulary_is_refused(folder, vocabulary, tmp_path):
    other = Vocabulary.train(iter(QUERIES), str(tmp_path / "other"), pieces=400)
    with pytest.raises(UserError, match="run again with --gin.vocab.pretrained="):
        pretrained.check_fits(str(folder), ours(other), other)
    (folder / "spiece.model").unlink()
    with pytest.raises(UserError, match="copy it beside the model's config.json"):
        pretrained.check_fits(str(folder), ours(vocabulary), vocabulary)


# ------------------------------------------------------------------ export


FEATURES = dataclasses.asdict(FeatureSpec(soft=False, items=False))


def trained(work, config, vocabulary, params):
    """Fills a WORK_DIR as `pretrain` does."""
    for name in ("vocab", "pretrain"):
        Manifest(name, 1, {}, {}).write(str(work / name), finished=True)
    vocabulary.save(str(work / "vocab"))
    stored = {
        "model": dataclasses.asdict(config),
        "features": FEATURES,
        "vocabulary": vocabulary.fingerprint,
        "tasks": {"query": 1.0},
    }
    write_json(str(work / "pretrain" / "model.json"), stored)
    with Checkpoints(str(work / "pretrain")) as checkpoints:
        checkpoints.save_best(1, jax.tree.map(jnp.asarray, params), {})
    files = [*BUNDLED, "pretrain/model.json", "pretrain/best"]
    bundle.make(WorkDir(str(work)), "pretrain", files)


def test_the_export_stage_writes_a_folder_to_train_from(folder, vocabulary, tmp_path, capsys):
    config = ours(vocabulary)
    params = pretrained.read(
        str(folder), config, vocabulary, pretrain_stage(config).init_fn, seed=0
    )
    trained(tmp_path / "work", config, vocabulary, params)
    command = ["export", f"--gin.WORK_DIR={tmp_path / 'work'}"]
    assert main.main(command) == 2
    assert "--to FOLDER" in capsys.readouterr().err
    out = tmp_path / "out"
    assert main.main([*command, "--to", str(out)]) == 0
    exported, exported_params, _ = read_t5(str(out))
    assert exported == dataclasses.replace(config, first_marker=0, last_marker=-1)
    jax.tree.map(np.testing.assert_array_equal, exported_params, params)
    assert json.loads((out / "onesug.json").read_text())["features"] == FEATURES
    names = {"spiece.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert names <= {path.name for path in out.iterdir()}
    assert main.main([*command, "--to", str(out)]) == 2
    assert "holds files already" in capsys.readouterr().err


@pytest.mark.long
def test_a_model_with_parts_that_a_t5_lacks_is_not_exported(vocabulary, tmp_path, capsys):
    config = ours(vocabulary, segments=True)
    params = unbox(jax.jit(pretrain_stage(config).init_fn)(jax.random.key(0)))
    trained(tmp_path / "work", config, vocabulary, params)
    out = str(tmp_path / "out")
    assert main.main(["export", f"--gin.WORK_DIR={tmp_path / 'work'}", "--to", out]) == 2
    assert "--gin.ModelConfig.segments=False" in capsys.readouterr().err
