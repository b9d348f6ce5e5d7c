"""Reads and writes T5 weights in the Hugging Face layout: T5 v1.1, Flan-T5, mT5, umT5.

A folder contains `config.json` and `model.safetensors` (or `model.safetensors.index.json` and its
shards) in float32, float16 or bfloat16; parameters are float32 here. Nothing is downloaded, and
PyTorch is not needed. The differences between the file and `Seq2Seq`:

- The file has one tensor per layer, with kernels `[out, in]` and the heads concatenated; here heads
  have their own axis and layers are stacked.
- The file's token table is not scaled; here it is smaller by sqrt(d_model) (`Seq2Seq._embed`).
  Multiplication changes at most one unit in the last place, and nothing if sqrt(d_model) is a power
  of two; all other tensors are bit for bit the same.
- Whether transformers multiplies decoder outputs by d_model**-0.5 depends on family and version
  (`hf_config.scales_outputs`). Here a tied head is scaled (the smaller table is the head) and a
  separate one is not, so its kernel absorbs the factor.
- In T5 and mT5 the layers of a side share the first layer's relative positions; every layer of umT5
  has its own (`ModelConfig.positions_per_layer`).

`with_rows` adds rows for tokens that a pretrained model does not have.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_path, write_json
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.hf_config import (
    CONFIG,
    check_exportable,
    config_files,
    family_of,
    make_config,
    read_json,
    scales_outputs,
)
from onesug_jax.model.safetensor_files import (
    WEIGHTS,
    Stored,
    Tensor,
    opened,
    read_tensors,
    write_tensors,
)

_TABLE, _HEAD = "shared.weight", "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of the table
# The original T5 saved it, but no version reads it.
_IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


@dataclasses.dataclass(frozen=True)
class Report:
    """A summary of the weights that were read.

    Attributes:
      family: "t5", "mt5" or "umt5".
      tensors: number of tensors that were used.
      values: number of values in them.
      precision: the file's dtypes, as safetensors names them.
      notes: messages for the user.
    """

    family: str
    tensors: int
    values: int
    precision: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{self.tensors} tensors, {self.values:,} values ({self.family}, {self.precision})"
        return "\n".join([first, *self.notes])


def tensors(config: ModelConfig) -> dict[tuple[str, ...], Tensor]:
    """The file's tensors of each parameter of a T5 of these sizes.

    `read_t5` and `write_t5` apply the factors of the table and the head.
    """
    c = config
    width, heads, inner = (c.d_model,), (c.num_heads, c.head_dim), (c.d_ff,)
    mapping: dict[tuple[str, ...], Tensor] = {}

    def put(path: tuple[str, ...], names: list[str], shape, ours=None, transposed=False) -> None:
        stacked = path[0] in ("encoder", "decoder")
        mapping[path] = Tensor(tuple(names), shape, ours or shape, stacked, transposed)

    def dense(path: tuple[str, ...], names: list[str], before, after) -> None:
        shape = (int(np.prod(after)), int(np.prod(before)))
        put(path, names, shape, before + after, transposed=True)

    def positions(path: tuple[str, ...], names: list[str]) -> None:
        shape = (c.relative_buckets, c.num_heads)
        put(path, names, shape, shape[::-1], transposed=True)

    put(("embedding",), [_TABLE], (c.vocab_size, c.d_model))
    for side, layers, blocks in (
        ("encoder", c.encoder_layers, {"": "SelfAttention"}),
        ("decoder", c.decoder_layers, {"self_": "SelfAttention", "cross_": "EncDecAttention"}),
    ):
        stems = [f"{side}.block.{number}.layer" for number in range(layers)]
        for block, (ours, theirs) in enumerate(blocks.items()):
            attention = f"{ours}attention"
            for name in ("query", "key", "value"):
                names = [f"{stem}.{block}.{theirs}.{name[0]}.weight" for stem in stems]
                dense((side, attention, name), names, width, heads)
            names = [f"{stem}.{block}.{theirs}.o.weight" for stem in stems]
            dense((side, attention, "out"), names, heads, width)
            names = [f"{stem}.{block}.layer_norm.weight" for stem in stems]
            put((side, f"{ours or 'attention_'}norm", "scale"), names, width)
        block = len(blocks)
        for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
            names = [f"{stem}.{block}.DenseReluDense.{theirs}.weight" for stem in stems]
            sizes = (inner, width) if ours == "down" else (width, inner)
            dense((side, "mlp", ours), names, *sizes)
        put((side, "mlp_norm", "scale"), [f"{s}.{block}.layer_norm.weight" for s in stems], width)
        biases = [f"{stem}.0.SelfAttention.relative_attention_bias.weight" for stem in stems]
        if c.positions_per_layer:
            positions((side, "positions", "table"), biases)
        else:
            positions((f"{side}_positions", "table"), biases[:1])
        put((f"{side}_norm", "scale"), [f"{side}.final_layer_norm.weight"], width)
    if not c.tie_embeddings:
        dense(("head",), [_HEAD], width, (c.vocab_size,))
    return mapping


# ------------------------------------------------------------------ reading


def read_t5(folder: str) -> tuple[ModelConfig, dict, Report]:
    """A pretrained model: sizes, the parameters of `Seq2Seq` (float32, on the host), and a report.

    Logits are those of transformers' T5/MT5/UMT5ForConditionalGeneration. If the table is also the
    head, but without the factor d_model**-0.5, the result is an untied model with a copy as head.

    Raises:
      UserError: a file is missing or damaged, `Seq2Seq` does not implement the config.json, or the
        tensors do not fit it; names missing and surplus tensors, or the first wrong shape.
    """
    path = os.path.join(folder, CONFIG)
    values = read_json(path)
    config, family = make_config(path, values), family_of(path, values)
    with opened(folder) as (stored, weights):
        own = _HEAD in stored
        scaled = scales_outputs(values, family, own)
        # Without a stored head, config.json must say that the table is the head.
        tied = not own and bool(values.get("tie_word_embeddings", True))
        config = dataclasses.replace(config, tie_embeddings=tied and scaled)
        expected = tensors(config)
        copied = tied and not scaled
        if copied:
            expected.pop(("head",))
        flat = read_tensors(weights, stored, expected, (*_COPIES, *_IGNORED))
        _check_copies(weights, stored, flat[("embedding",)])
        names = [name for tensor in expected.values() for name in tensor.names]
        precision = "/".join(sorted({stored[name].kind() for name in names}))
    size = sum(value.size for value in flat.values())
    factor = np.float32(config.d_model**0.5)
    if copied:
        flat[("head",)] = np.ascontiguousarray(flat[("embedding",)].T)
    elif own and scaled:
        flat[("head",)] = flat[("head",)] / factor
    flat[("embedding",)] = flat[("embedding",)] / factor
    notes = []
    if copied:
        notes.append("the head is a copy of the token table, because its outputs are not scaled")
    if own and scaled and family == "umt5" and "transformers_version" in values:
        notes.append(
            f"outputs are multiplied by d_model**-0.5, as transformers 5 does with this {CONFIG} "
            "(tie_word_embeddings true); umT5 was trained without it, and version 5 always writes "
            "true: set it to false if version 5 wrote the folder"
        )
    return config, unflatten_dict(flat), Report(family, len(names), size, precision, tuple(notes))


def _check_copies(path: str, stored: Mapping[str, Stored], table: np.ndarray) -> None:
    """Some versions save the table for each side; two different tables are not supported."""
    for name in _COPIES:
        if name in stored and not np.array_equal(stored[name].value().astype("f4"), table):
            raise UserError(
                f"{path}: {name} differs from {_TABLE}; supported is one table for both sides."
            )


# ------------------------------------------------------------------ new rows


def with_rows(
    config: ModelConfig, params: Mapping[str, Any], size: int, *, pieces: int, seed: int
) -> tuple[ModelConfig, dict]:
    """The model with `size` tokens: new rows follow the existing ones.

    A new row of the token table is drawn from a normal distribution with the mean and standard
    deviation, by column, of the first `pieces` rows (the text pieces). A new column of a separate
    head is the mean of those `pieces` columns, without noise: a new token scores like the average
    one, so training starts from the lists of the pretrained model. A tied head has the rows of the
    token table.

    Args:
      config, params: from `read_t5`.
      size: the new number of tokens, at least `config.vocab_size`.
      pieces: number of rows for the statistics, at most `config.vocab_size`.
      seed: of the random rows.
    """
    extra = size - config.vocab_size
    if extra < 0 or not 0 < pieces <= config.vocab_size:
        raise ValueError(f"size={size}, pieces={pieces}: the table has {config.vocab_size} rows")
    params = dict(params)
    table = np.asarray(params["embedding"], np.float32)
    mean, spread = table[:pieces].mean(0), table[:pieces].std(0)
    drawn = np.random.default_rng(seed).standard_normal((extra, config.d_model), np.float32)
    params["embedding"] = np.concatenate([table, mean + spread * drawn]).astype(np.float32)
    if not config.tie_embeddings:
        head = np.asarray(params["head"], np.float32)
        new = np.repeat(head[:, :pieces].mean(1, keepdims=True), extra, axis=1)
        params["head"] = np.concatenate([head, new], axis=1)
    return dataclasses.replace(config, vocab_size=size), params


# ------------------------------------------------------------------ writing


def write_t5(folder: str, config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes config.json, generation_config.json and model.safetensors (float32) into `folder`.

    transformers 5 loads it with `T5ForConditionalGeneration`, or `UMT5ForConditionalGeneration` if
    every layer has its own positions. Version 4 does too, except umT5 with a separate head, whose
    outputs the two versions scale differently.

    Raises:
      UserError: Hugging Face's T5 does not have a part of the model (`check_exportable`).
      ValueError: `params` are not those of `config`.
    """
    check_exportable(config)
    flat = {path: np.asarray(value, np.float32) for path, value in flatten_dict(params).items()}
    expected = tensors(config)
    if flat.keys() != expected.keys():
        raise ValueError(f"parameters do not fit: {sorted(flat.keys() ^ expected.keys())[:3]}")
    factor = np.float32(config.d_model**0.5)
    flat[("embedding",)] = flat[("embedding",)] * factor
    if config.positions_per_layer and not config.tie_embeddings:
        flat[("head",)] = flat[("head",)] * factor
    for name, content in config_files(config).items():
        write_json(os.path.join(folder, name), content)
    with atomic_path(os.path.join(folder, WEIGHTS)) as path:
        write_tensors(path, expected, flat)
