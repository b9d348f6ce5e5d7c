"""Reads and writes BERT folders in the Hugging Face layout: configuration, weights, pooling.

It reads folders of transformers' `BertModel` and of sentence-transformers (BGE, MiniLM), and both
can read the folders it writes. Poolers and language-model heads are ignored. `wordpiece.py` reads
the tokenizer. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from onesug_jax import files
from onesug_jax.errors import UserError
from onesug_jax.model.hf_config import CONFIG
from onesug_jax.model.safetensor_files import Tensor, opened, read_tensors, write_tensors
from onesug_jax.text_encoder.bert import EncoderConfig

POOLING, LENGTH, MODULES = "1_Pooling/config.json", "sentence_bert_config.json", "modules.json"
_POOLING_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
_IGNORED = ("pooler.", "cls.")  # heads of other tasks
_POSITION_IDS = "position_ids"  # a constant in files of older versions
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # layer norms in files of older versions
# config.json's name -> ours
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
}


def read_config(folder: str, max_length: int | None = None, **changes: Any) -> EncoderConfig:
    """The configuration of a folder.

    Args:
      max_length: tokens a text is cut to; None: the folder's setting, else all positions.
      changes: other fields of `EncoderConfig` to set.

    Raises:
      UserError: a file is missing or unreadable, or describes a model that is not this BERT.
    """
    place = os.path.join(folder, CONFIG)
    stored = read_json(place)
    for name, expected in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ):
        found = stored.get(name, expected)
        if found != expected:
            raise UserError(
                f"{place}: expected {name} {expected!r}, found {found!r}; choose an encoder of the "
                "BERT family, such as BGE or MiniLM."
            )
    missing = [name for name in _SIZES if not isinstance(stored.get(name), int)]
    if missing:
        raise UserError(
            f"{place}: expected a number {missing[0]!r}, found none; choose an encoder of the BERT "
            "family."
        )
    sizes = {ours: stored[name] for name, ours in _SIZES.items()}
    if max_length is None:
        path = os.path.join(folder, LENGTH)
        longest = read_json(path).get("max_seq_length") if os.path.isfile(path) else None
        max_length = min(longest or sizes["max_positions"], sizes["max_positions"])
    rest = {
        "max_length": max_length,
        "pooling": _read_pooling(folder),
        "dropout": float(stored.get("hidden_dropout_prob", 0.1)),
        "norm_eps": float(stored.get("layer_norm_eps", 1e-12)),
    }
    return EncoderConfig(**{**sizes, **rest, **changes})


def config_files(config: EncoderConfig) -> dict[str, Any]:
    """The files that `read_config` reads: file name -> JSON value."""
    sizes = dataclasses.asdict(config)
    return {
        CONFIG: {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "pad_token_id": 0,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
            "layer_norm_eps": config.norm_eps,
            **{name: sizes[ours] for name, ours in _SIZES.items()},
        },
        POOLING: {
            "word_embedding_dimension": config.d_model,
            **{flag: config.pooling == name for name, flag in _POOLING_FLAGS.items()},
        },
        LENGTH: {"max_seq_length": config.max_length, "do_lower_case": False},
        MODULES: [
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
    }


def _read_pooling(folder: str) -> str:
    path = os.path.join(folder, POOLING)
    if not os.path.isfile(path):
        return "mean"
    stored = read_json(path)
    flags = [name for name, on in stored.items() if name.startswith("pooling_mode_") and on]
    pooling_of = {flag: name for name, flag in _POOLING_FLAGS.items()}
    if len(flags) != 1 or flags[0] not in pooling_of:
        raise UserError(
            f"{path}: expected one of {', '.join(pooling_of)} to be true, found "
            f"{', '.join(flags) or 'none'}; choose an encoder with such a pooling."
        )
    return pooling_of[flags[0]]


def tensors(config: EncoderConfig) -> dict[tuple[str, ...], Tensor]:
    """The stored tensor of each of our parameters, in the order of the computation."""
    c = config

    def dense(name: str, ours: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Iterator:
        stored = int(np.prod(outputs)), int(np.prod(inputs))
        kernel = Tensor((f"{name}.weight",), stored, inputs + outputs, transposed=True)
        yield f"{ours}_kernel", kernel
        yield f"{ours}_bias", Tensor((f"{name}.bias",), stored[:1], outputs)

    def norm(name: str) -> Iterator:
        yield "scale", Tensor((f"{name}.weight",), (c.d_model,), (c.d_model,))
        yield "bias", Tensor((f"{name}.bias",), (c.d_model,), (c.d_model,))

    found: dict[tuple[str, ...], Tensor] = {}
    for ours, name, rows in (
        ("words", "word", c.vocab_size),
        ("positions", "position", c.max_positions),
        ("types", "token_type", c.token_types),
    ):
        shape = (rows, c.d_model)
        found[(ours,)] = Tensor((f"embeddings.{name}_embeddings.weight",), shape, shape)
    found |= {("norm", part): tensor for part, tensor in norm("embeddings.LayerNorm")}
    width, heads = (c.d_model,), (c.heads, c.head_dim)
    for number in range(c.layers):
        base, ours = f"encoder.layer.{number}", f"layer_{number}"
        parts = [
            *(
                dense(f"{base}.attention.self.{n}", n, width, heads)
                for n in ("query", "key", "value")
            ),
            dense(f"{base}.attention.output.dense", "out", heads, width),
            dense(f"{base}.intermediate.dense", "up", width, (c.d_ff,)),
            dense(f"{base}.output.dense", "down", (c.d_ff,), width),
        ]
        found |= {(ours, name): tensor for part in parts for name, tensor in part}
        for inner, name in (("attention_norm", "attention.output"), ("norm", "output")):
            for part, tensor in norm(f"{base}.{name}.LayerNorm"):
                found[(ours, inner, part)] = tensor
    return found


def read_weights(folder: str, config: EncoderConfig) -> dict:
    """The parameters of `bert.Bert`, float32 on the host, from a file of any precision.

    Raises:
      UserError: the weights are missing, are not a safetensors file, or do not fit `config`.
    """
    with opened(folder) as (stored, place):
        plain = {_plain(name): tensor for name, tensor in stored.items()}
        used = {name: tensor for name, tensor in plain.items() if not _ignored(name)}
        return unflatten_dict(read_tensors(place, used, tensors(config)))


def write_weights(path: str, config: EncoderConfig, params: Any) -> None:
    """Write parameters as one safetensors file, float32."""
    flat = {where: np.asarray(value, np.float32) for where, value in flatten_dict(params).items()}
    write_tensors(path, tensors(config), flat)


def _plain(name: str) -> str:
    """The name of a stored tensor, independent of the version that wrote it."""
    parts = name.removeprefix("bert.").split(".")
    if "LayerNorm" in parts:
        parts[-1] = _OLD_NAMES.get(parts[-1], parts[-1])
    return ".".join(parts)


def _ignored(name: str) -> bool:
    return name.startswith(_IGNORED) or name.endswith(_POSITION_IDS)


def read_json(path: str) -> dict[str, Any]:
    """A JSON file's object; UserError if it is missing, damaged, or no object."""
    return files.read_object(path, "an encoder in the Hugging Face layout", "copy it again.")
