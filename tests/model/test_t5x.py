"""T5X checkpoints, written by these tests in T5X's layout, are read as the same model."""

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

LONGEST = 128  # T5X's default, which the checkpoint does not contain


def t5x_arrays(config, params):
    """T5X's name -> array of one layer: kernels [in, out] with concatenated heads."""
    width, heads = config.d_model, config.num_heads * config.head_dim
    arrays = {"token_embedder/embedding": params["embedding"] * np.float32(width**0.5)}
    if not config.tie_embeddings:
        arrays["decoder/logits_dense/kernel"] = params["head"]
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
        arrays[f"{side}/{side}_norm/scale"] = params[f"{side}_norm"]["scale"]
        if not config.positions_per_layer:
            arrays[f"{side}/relpos_bias/rel_embedding"] = params[f"{side}_positions"]["table"]
        for layer in range(len(ours["mlp"]["up"])):
            stem = f"{side}/layers_{layer}"
            if config.positions_per_layer:
                arrays[f"{stem}/relpos_bias/rel_embedding"] = ours["positions"]["table"][layer]
            for block, theirs, norm, their_norm in parts:
                for name in ("query", "key", "value"):
                    kernel = ours[block][name][layer].reshape(width, heads)
                    arrays[f"{stem}/{theirs}/{name}/kernel"] = kernel
                out = ours[block]["out"][layer].reshape(heads, width)
                arrays[f"{stem}/{theirs}/out/kernel"] = out
                arrays[f"{stem}/{their_norm}/scale"] = ours[norm]["scale"][layer]
            for name, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
                arrays[f"{stem}/mlp/{theirs}/kernel"] = ours["mlp"][name][layer]
            arrays[f"{stem}/pre_mlp_layer_norm/scale"] = ours["mlp_norm"]["scale"][layer]
    return arrays


def scanned(arrays):
    """The arrays of a scanned model, whose second axis is the layer."""
    stacked, layers = {}, {}
    for name, value in arrays.items():
        side, _, rest = name.partition("/")
        if rest.startswith("layers_"):
            layers.setdefault(f"{side}/{side}/{rest.split('/', 1)[1]}", []).append(value)
        else:
            stacked[name] = value
    return stacked | {name: np.stack(values, 1) for name, values in layers.items()}


def written(folder, arrays, dtype="float32"):
    """T5X's folder: kernels as zarr arrays, the others inside the msgpack file."""
    folder.mkdir()
    tree = {}
    for name, value in arrays.items():
        leaf = value.astype(dtype)
        if name.endswith("kernel"):
            file = f"target.{name.replace('/', '.')}"
            spec = {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": str(folder / file)},
                "metadata": {"compressor": {"id": "gzip"}, "shape": list(value.shape)},
                "dtype": dtype,
            }
            tensorstore.open(spec, create=True).result().write(leaf).result()
            kvstore = {"driver": "gfile", "path": file}
            leaf = {"driver": "zarr", "kvstore": kvstore, "metadata": {"dtype": dtype}}
        tree[tuple(name.split("/"))] = leaf
    state = {"step": 7, "param_states": {}}
    content = {"version": 3, "optimizer": {"target": unflatten_dict(tree), "state": state}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return folder


@pytest.mark.parametrize("layout", [dict, scanned])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_is_read(kind, layout, tmp_path):
    config, params = KINDS[kind], random_params(KINDS[kind])
    folder = written(tmp_path / "checkpoint_7", layout(t5x_arrays(config, params)))
    read_config, read_params = read_t5x(str(folder))
    assert read_config == dataclasses.replace(config, relative_max_distance=LONGEST)
    assert_same(read_params, params)  # sqrt(16) is a power of two


def test_bfloat16_is_read(tmp_path):
    config, params = KINDS["T5"], random_params(KINDS["T5"])
    folder = written(tmp_path / "checkpoint_7", t5x_arrays(config, params), "bfloat16")
    _, read_params = read_t5x(str(folder))
    expected = params["head"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read_params["head"], expected)


def test_parameters_that_do_not_fit_are_named(tmp_path):
    config = KINDS["T5"]
    arrays = t5x_arrays(config, random_params(config))
    with pytest.raises(UserError, match="give the folder checkpoint_STEP itself"):
        read_t5x(str(tmp_path))
    missing = {n: v for n, v in arrays.items() if n != "decoder/layers_1/mlp/wo/kernel"}
    with pytest.raises(UserError, match="expected the parameter decoder/layers_1/mlp/wo/kernel"):
        read_t5x(str(written(tmp_path / "missing", missing)))
    surplus = arrays | {"encoder/layers_0/adapter/kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match="encoder/layers_0/adapter/kernel and 0 more"):
        read_t5x(str(written(tmp_path / "surplus", surplus)))
    wrong = arrays | {"encoder/layers_2/mlp/wo/kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match=r"encoder/layers_2/mlp/wo/kernel is \[2, 2\]"):
        read_t5x(str(written(tmp_path / "wrong", wrong)))
    old = {n.replace("wi_0", "wi"): v for n, v in arrays.items() if "wi_1" not in n}
    with pytest.raises(UserError, match="the first T5 of 2019"):
        read_t5x(str(written(tmp_path / "old", old)))
    (tmp_path / "surplus" / "checkpoint").write_bytes(b"\x00 no msgpack")
    with pytest.raises(UserError, match="copy it again"):
        read_t5x(str(tmp_path / "surplus"))


def test_the_command_writes_a_folder_for_training(tmp_path, capsys):
    config, params = KINDS["tied"], random_params(KINDS["tied"])
    source = written(tmp_path / "checkpoint_7", t5x_arrays(config, params))
    pieces = tmp_path / "sentencepiece.model"
    pieces.write_bytes(b"pieces")
    out = tmp_path / "t5"
    words = ["convert", "--checkpoint", str(source), "--vocabulary", str(pieces)]
    assert main.main(words) == 2
    assert "--to FOLDER" in capsys.readouterr().err
    assert main.main([*words, "--to", str(out)]) == 0
    assert "--gin.PARAMS_FROM" in capsys.readouterr().out
    read_config, read_params, _ = read_t5(str(out))
    assert read_config == dataclasses.replace(config, relative_max_distance=LONGEST)
    assert_same(read_params, params)
    assert (out / "spiece.model").read_bytes() == b"pieces"
    assert main.main([*words, "--to", str(out)]) == 2
    assert "holds files already" in capsys.readouterr().err
