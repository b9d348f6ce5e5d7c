"""T5X checkpoints, written here by hand in T5X's layout, are read as the same model."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization
from flax.traverse_util import unflatten_dict

from onesug_jax import main
from onesug_jax.errors import UserError
from onesug_jax.model.hf import read_t5
from onesug_jax.model.t5x import read_t5x
from tests.model.test_hf import KINDS, assert_same, random_params

LONGEST = 128  # T5X does not state it


def named(config, params):
    """T5X's names and arrays of a layer each: kernels [in, out], heads side by side."""
    width, heads = config.d_model, config.num_heads * config.head_dim
    found = {"token_embedder/embedding": params["embedding"] * np.float32(width**0.5)}
    if not config.tie_embeddings:
        found["decoder/logits_dense/kernel"] = params["head"]
    blocks = {
        "encoder": [("attention", "attention", "attention_norm", "pre_attention_layer_norm")],
        "decoder": [
            ("self_attention", "self_attention", "self_norm", "pre_self_attention_layer_norm"),
            (
                "cross_attention",
                "encoder_decoder_attention",
                "cross_norm",
                "pre_cross_attention_layer_norm",
            ),
        ],
    }
    for side, parts in blocks.items():
        ours = params[side]
        found[f"{side}/{side}_norm/scale"] = params[f"{side}_norm"]["scale"]
        if not config.positions_per_layer:
            found[f"{side}/relpos_bias/rel_embedding"] = params[f"{side}_positions"]["table"]
        for layer in range(len(ours["mlp"]["up"])):
            stem = f"{side}/layers_{layer}"
            if config.positions_per_layer:
                found[f"{stem}/relpos_bias/rel_embedding"] = ours["positions"]["table"][layer]
            for block, theirs, norm, their_norm in parts:
                for name in ("query", "key", "value"):
                    kernel = ours[block][name][layer].reshape(width, heads)
                    found[f"{stem}/{theirs}/{name}/kernel"] = kernel
                out = ours[block]["out"][layer].reshape(heads, width)
                found[f"{stem}/{theirs}/out/kernel"] = out
                found[f"{stem}/{their_norm}/scale"] = ours[norm]["scale"][layer]
            for mine, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
                found[f"{stem}/mlp/{theirs}/kernel"] = ours["mlp"][mine][layer]
            found[f"{stem}/pre_mlp_layer_norm/scale"] = ours["mlp_norm"]["scale"][layer]
    return found


def scanned(found):
    """The layers of each side in one array, the layer its second axis."""
    stacked, layers = {}, {}
    for name, value in found.items():
        side, _, rest = name.partition("/")
        if rest.startswith("layers_"):
            layers.setdefault(f"{side}/{side}/{rest.split('/', 1)[1]}", []).append(value)
        else:
            stacked[name] = value
    return stacked | {name: np.stack(values, 1) for name, values in layers.items()}


def written(folder, found, dtype="float32"):
    """T5X's folder: kernels as zarr arrays, the rest inside the msgpack file."""
    folder.mkdir()
    tree = {}
    for name, value in found.items():
        leaf = value.astype(dtype)
        if name.endswith("kernel"):
            inside = f"target.{name.replace('/', '.')}"
            spec = {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": str(folder / inside)},
                "metadata": {"compressor": {"id": "gzip"}, "shape": list(value.shape)},
                "dtype": dtype,
            }
            tensorstore.open(spec, create=True).result().write(leaf).result()
            kvstore = {"driver": "gfile", "path": inside}
            leaf = {"driver": "zarr", "kvstore": kvstore, "metadata": {"dtype": dtype}}
        tree[tuple(name.split("/"))] = leaf
    state = {"step": 7, "param_states": {}}
    content = {"version": 3, "optimizer": {"target": unflatten_dict(tree), "state": state}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return folder


@pytest.mark.parametrize("layout", [dict, scanned])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_comes_back(kind, layout, tmp_path):
    config, params = KINDS[kind], random_params(KINDS[kind])
    folder = written(tmp_path / "checkpoint_7", layout(named(config, params)))
    found, again = read_t5x(str(folder))
    assert found == dataclasses.replace(config, relative_max_distance=LONGEST)
    assert_same(again, params)  # sqrt(16) is a power of two


def test_bfloat16_is_read(tmp_path):
    config, params = KINDS["T5"], random_params(KINDS["T5"])
    folder = written(tmp_path / "checkpoint_7", named(config, params), "bfloat16")
    _, again = read_t5x(str(folder))
    expected = params["head"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(again["head"], expected)


def test_what_does_not_fit_is_named(tmp_path):
    config = KINDS["T5"]
    found = named(config, random_params(config))
    with pytest.raises(UserError, match="give the folder checkpoint_STEP itself"):
        read_t5x(str(tmp_path))
    lacking = {n: v for n, v in found.items() if n != "decoder/layers_1/mlp/wo/kernel"}
    with pytest.raises(UserError, match="expected the parameter decoder/layers_1/mlp/wo/kernel"):
        read_t5x(str(written(tmp_path / "lacking", lacking)))
    more = found | {"encoder/layers_0/adapter/kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match="encoder/layers_0/adapter/kernel and 0 more"):
        read_t5x(str(written(tmp_path / "more", more)))
    wrong = found | {"encoder/layers_2/mlp/wo/kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match=r"encoder/layers_2/mlp/wo/kernel is \[2, 2\]"):
        read_t5x(str(written(tmp_path / "wrong", wrong)))
    old = {n.replace("wi_0", "wi"): v for n, v in found.items() if "wi_1" not in n}
    with pytest.raises(UserError, match="the first T5 of 2019"):
        read_t5x(str(written(tmp_path / "old", old)))
    (tmp_path / "more" / "checkpoint").write_bytes(b"\x00 no msgpack")
    with pytest.raises(UserError, match="copy it again"):
        read_t5x(str(tmp_path / "more"))


def test_the_command_writes_a_folder_that_training_starts_from(tmp_path, capsys):
    config, params = KINDS["tied"], random_params(KINDS["tied"])
    source = written(tmp_path / "checkpoint_7", named(config, params))
    pieces = tmp_path / "sentencepiece.model"
    pieces.write_bytes(b"pieces")
    out = tmp_path / "t5"
    words = ["convert", "--checkpoint", str(source), "--vocabulary", str(pieces)]
    assert main.main(words) == 2
    assert "--to FOLDER" in capsys.readouterr().err
    assert main.main([*words, "--to", str(out)]) == 0
    assert "--gin.PARAMS_FROM" in capsys.readouterr().out
    found, again, _ = read_t5(str(out))
    assert found == dataclasses.replace(config, relative_max_distance=LONGEST)
    assert_same(again, params)
    assert (out / "spiece.model").read_bytes() == b"pieces"
    assert main.main([*words, "--to", str(out)]) == 2
    assert "holds files already" in capsys.readouterr().err
