"""T5 weights in the Hugging Face layout, in and out: T5 v1.1, Flan-T5, mT5, umT5.

A folder holds `config.json` and `model.safetensors` (or `model.safetensors.index.json` and its
shards) in float32, float16 or bfloat16; parameters are float32 here. Nothing is fetched from
anywhere, and PyTorch is not needed. What differs between the file and `Seq2Seq`:

- Kernels lie there as `[out, in]`, heads side by side, a tensor a layer; here heads have an axis of
  their own and layers are stacked.
- The token table lies there as it is added to the stream; here it is smaller by sqrt(d_model)
  (`Seq2Seq._embed`). Multiplying costs at most one unit in the last place, and nothing where
  sqrt(d_model) is a power of two; every other tensor comes back bit for bit.
- transformers multiplies decoder outputs by d_model**-0.5 or does not; the rule depends on family
  and version (`hf_config.scales_outputs`). Here a tied head is scaled (the smaller table is the
  head) and one of its own is not: the factor goes into the head's kernel.
- T5 and mT5 share the first layer's relative positions among the layers of a side; every layer of
  umT5 has its own (`ModelConfig.positions_per_layer`).

New rows, for tokens that a pretrained model does not know, are made by `with_rows`.
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
# Original T5 saved it; no version reads it.
_IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was read.

    Attributes:
      family: "t5", "mt5" or "umt5".
      tensors: tensors of the file that were used.
      values: numbers in them.
      precision: the file's number types, as safetensors names them.
      notes: what a user should know about this folder.
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
    """Where each parameter of a T5 of these sizes stands in the file.

    The table's and the head's factors are not applied here: `read_t5` and `write_t5` apply them.
    """
    c = config
    width, heads, inner = (c.d_model,), (c.num_heads, c.head_dim), (c.d_ff,)
    found: dict[tuple[str, ...], Tensor] = {}

    def put(where: tuple[str, ...], names: list[str], shape, ours=None, transposed=False) -> None:
        stacked = where[0] in ("encoder", "decoder")
        found[where] = Tensor(tuple(names), shape, ours or shape, stacked, transposed)

    def dense(where: tuple[str, ...], names: list[str], before, after) -> None:
        shape = (int(np.prod(after)), int(np.prod(before)))
        put(where, names, shape, before + after, transposed=True)

    def positions(where: tuple[str, ...], names: list[str]) -> None:
        shape = (c.relative_buckets, c.num_heads)
        put(where, names, shape, shape[::-1], transposed=True)

    put(("embedding",), [_TABLE], (c.vocab_size, c.d_model))
    for side, layers, blocks in (
        ("encoder", c.encoder_layers, {"": "SelfAttention"}),
        ("decoder", c.decoder_layers, {"self_": "SelfAttention", "cross_": "EncDecAttention"}),
    ):
        stems = [f"{side}.block.{number}.layer" for number in range(layers)]
        for place, (ours, theirs) in enumerate(blocks.items()):
            attention = f"{ours}attention"
            for name in ("query", "key", "value"):
                names = [f"{stem}.{place}.{theirs}.{name[0]}.weight" for stem in stems]
                dense((side, attention, name), names, width, heads)
            names = [f"{stem}.{place}.{theirs}.o.weight" for stem in stems]
            dense((side, attention, "out"), names, heads, width)
            names = [f"{stem}.{place}.layer_norm.weight" for stem in stems]
            put((side, f"{ours or 'attention_'}norm", "scale"), names, width)
        place = len(blocks)
        for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
            names = [f"{stem}.{place}.DenseReluDense.{theirs}.weight" for stem in stems]
            dense(
                (side, "mlp", ours), names, *((inner, width) if ours == "down" else (width, inner))
            )
        put((side, "mlp_norm", "scale"), [f"{s}.{place}.layer_norm.weight" for s in stems], width)
        biases = [f"{stem}.0.SelfAttention.relative_attention_bias.weight" for stem in stems]
        if c.positions_per_layer:
            positions((side, "positions", "table"), biases)
        else:
            positions((f"{side}_positions", "table"), biases[:1])
        put((f"{side}_norm", "scale"), [f"{side}.final_layer_norm.weight"], width)
    if not c.tie_embeddings:
        dense(("head",), [_HEAD], width, (c.vocab_size,))
    return found


# ------------------------------------------------------------------ in


def read_t5(folder: str) -> tuple[ModelConfig, dict, Report]:
    """A pretrained model: sizes, the parameters of `Seq2Seq` (float32, on the host), and a report.

    Logits are those of transformers' T5/MT5/UMT5ForConditionalGeneration. A table that is also the
    head without the factor d_model**-0.5 is copied into a head of its own, so the model comes back
    untied.

    Raises:
      UserError: a file is missing or damaged, config.json asks for what `Seq2Seq` does not compute,
        or the tensors do not fit it: those that are missing or too many are named, or the first of
        another shape with both.
    """
    place = os.path.join(folder, CONFIG)
    stated = read_json(place)
    config, family = make_config(place, stated), family_of(place, stated)
    with opened(folder) as (stored, where):
        own = _HEAD in stored
        scaled = scales_outputs(stated, family, own)
        # config.json says that the head is the table, or it must be there.
        tied = not own and bool(stated.get("tie_word_embeddings", True))
        config = dataclasses.replace(config, tie_embeddings=tied and scaled)
        wanted = tensors(config)
        copied = tied and not scaled
        if copied:  # read with the table
            wanted.pop(("head",))
        flat = read_tensors(where, stored, wanted, (*_COPIES, *_IGNORED))
        _check_copies(where, stored, flat[("embedding",)])
        precision = "/".join(sorted({stored[n].kind() for t in wanted.values() for n in t.names}))
    values = sum(value.size for value in flat.values())
    factor = np.float32(config.d_model**0.5)
    if copied:
        flat[("head",)] = np.ascontiguousarray(flat[("embedding",)].T)
    elif own and scaled:
        flat[("head",)] = flat[("head",)] / factor
    flat[("embedding",)] = flat[("embedding",)] / factor
    notes = []
    if copied:
        notes.append("the head is a copy of the token table: outputs are not scaled there")
    if own and scaled and family == "umt5" and "transformers_version" in stated:
        notes.append(
            f"outputs are multiplied by d_model**-0.5, as {CONFIG} says (tie_word_embeddings "
            "true) and transformers 5 computes; umT5 was trained without it, and version 5 writes "
            "true whatever it read: set it to false if the folder went through version 5"
        )
    count = sum(len(tensor.names) for tensor in wanted.values())
    return config, unflatten_dict(flat), Report(family, count, values, precision, tuple(notes))


def _check_copies(place: str, stored: Mapping[str, Stored], table: np.ndarray) -> None:
    """Some versions save the table once a side; a side with a table of its own is another model."""
    for name in _COPIES:
        if name in stored and not np.array_equal(stored[name].value().astype("f4"), table):
            raise UserError(
                f"{place}: {name} differs from {_TABLE}; supported is one table for both sides."
            )


# ------------------------------------------------------------------ more rows


def with_rows(
    config: ModelConfig, params: Mapping[str, Any], size: int, *, pieces: int, seed: int
) -> tuple[ModelConfig, dict]:
    """The model with `size` tokens: the rows it has, and new ones behind them.

    A new row of the token table is drawn from a normal distribution with mean and standard
    deviation, column by column, of the first `pieces` rows (the text pieces): of the usual length,
    and no two alike. A new column of a head is the mean of those `pieces` columns, without noise: a
    new token scores as the average one does, so the lists of the pretrained model stay as they are
    until training moves it. A tied table has the rows of a token table. The same seed gives the
    same rows.

    Args:
      config, params: from `read_t5`.
      size: tokens in the end, at least `config.vocab_size`.
      pieces: rows whose statistics count, at most `config.vocab_size`.
      seed: of the draw.
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


# ------------------------------------------------------------------ out


def write_t5(folder: str, config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes config.json, generation_config.json and model.safetensors (float32) into `folder`.

    transformers 5 loads it by `T5ForConditionalGeneration`, or `UMT5ForConditionalGeneration` where
    every layer has positions of its own, and version 4 too, but for umT5 with a head of its own
    (the two versions scale its outputs differently).

    Raises:
      UserError: the model has what Hugging Face's T5 has not (`check_exportable`).
      ValueError: `params` are not those of `config`.
    """
    check_exportable(config)
    flat = {where: np.asarray(value, np.float32) for where, value in flatten_dict(params).items()}
    wanted = tensors(config)
    if flat.keys() != wanted.keys():
        raise ValueError(f"parameters do not fit: {sorted(flat.keys() ^ wanted.keys())[:3]}")
    factor = np.float32(config.d_model**0.5)
    flat[("embedding",)] = flat[("embedding",)] * factor
    if config.positions_per_layer and not config.tie_embeddings:
        flat[("head",)] = flat[("head",)] * factor
    for name, content in config_files(config).items():
        write_json(os.path.join(folder, name), content)
    with atomic_path(os.path.join(folder, WEIGHTS)) as path:
        write_tensors(path, wanted, flat)
