"""Reads and writes `config.json` of T5 v1.1, Flan-T5, mT5 and umT5; `hf.py` has the weights.

A setting that the other side does not implement is an error that names it, in both directions.
Checked against transformers 5.23.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from onesug_jax import files
from onesug_jax.errors import UserError
from onesug_jax.model.config import ModelConfig

CONFIG, GENERATION = "config.json", "generation_config.json"
FAMILIES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
# config.json's name -> ours
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "d_ff",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "relative_attention_num_buckets": "relative_buckets",
    "relative_attention_max_distance": "relative_max_distance",
}
_DEFAULTS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
_ONLY = {  # the value that `Seq2Seq` implements; transformers' default for a missing key
    "layer_norm_epsilon": (1e-6, 1e-6),
    "pad_token_id": (0, 0),
    "eos_token_id": (1, 1),
    "decoder_start_token_id": (0, 0),
    "is_encoder_decoder": (True, True),
}


def is_folder(path: str | os.PathLike | None) -> bool:
    """Whether `path` is the folder of a pretrained model, with a config.json."""
    return path is not None and os.path.isfile(os.path.join(path, CONFIG))


def read_config(folder: str) -> tuple[ModelConfig, str]:
    """The sizes in a folder's config.json, and its family: "t5", "mt5" or "umt5".

    `tie_embeddings` is that of config.json; `read_t5` corrects it by the tensors.

    Raises:
      UserError: config.json is missing or damaged, or `Seq2Seq` does not implement it; names the
        key, the found and the supported value.
    """
    path = os.path.join(folder, CONFIG)
    values = read_json(path)
    return make_config(path, values), family_of(path, values)


def family_of(path: str, values: Mapping[str, Any]) -> str:
    """One of FAMILIES, from the values of the config.json at `path`; UserError for any other."""
    family = values.get("model_type")
    if family is None:  # Google's umT5 folders have only the name of the class
        classes = {name: family for family, name in FAMILIES.items()}
        names = values.get("architectures") or ()
        family = next((classes[name] for name in names if name in classes), None)
    if family not in FAMILIES:
        raise UserError(
            f"{path}: expected model_type {' or '.join(FAMILIES)}, found {family!r}; choose a T5 "
            "v1.1, Flan-T5, mT5 or umT5 model."
        )
    return family


def make_config(path: str, values: Mapping[str, Any]) -> ModelConfig:
    """`read_config` of values already read from `path`."""
    family = family_of(path, values)
    gate = values.get("feed_forward_proj", "relu" if family == "t5" else "gated-gelu")
    if gate != "gated-gelu":
        raise UserError(
            f"{path}: feed_forward_proj is {gate!r}; supported is 'gated-gelu', as in T5 v1.1, "
            "Flan-T5, mT5 and umT5 (the first T5 of 2019 has 'relu')."
        )
    for key, value in (("is_gated_act", True), ("dense_act_fn", "gelu_new")):
        if values.get(key, value) != value:
            raise UserError(f"{path}: {key} is {values[key]!r}; supported is {value!r}.")
    for key, (supported, default) in _ONLY.items():
        found = default if values.get(key) is None else values[key]
        if found != supported:
            raise UserError(f"{path}: {key} is {found!r}; supported is {supported!r}.")
    sizes: dict[str, Any] = {}
    for key, ours in SIZES.items():
        size = values.get(key, _DEFAULTS.get(key))
        if size is None and key == "num_decoder_layers":
            size = values.get("num_layers")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{path}: {key} is {size!r}; expected a number of at least 1.")
        sizes[ours] = size
    return ModelConfig(
        **sizes,
        dropout=float(values.get("dropout_rate", 0.1)),
        tie_embeddings=bool(values.get("tie_word_embeddings", True)),
        positions_per_layer=family == "umt5",
    )


def scales_outputs(values: Mapping[str, Any], family: str, own_head: bool) -> bool:
    """Whether transformers multiplies the decoder's outputs by d_model**-0.5 before the head.

    T5's config.json states it since version 5; before, and in umT5, `tie_word_embeddings` decides.
    mT5 scales only up to version 4, and not with a separate head.
    """
    if "scale_decoder_outputs" in values:
        return bool(values["scale_decoder_outputs"])
    version = str(values.get("transformers_version", "4")).split(".")[0]
    if family == "mt5" and (own_head or (version.isdecimal() and int(version) >= 5)):
        return False
    return bool(values.get("tie_word_embeddings", True))


def check_exportable(config: ModelConfig) -> None:
    """Raises UserError with the first setting that Hugging Face's T5 does not support."""
    soft = f"soft tokens of width {config.soft_dim}"
    for on, setting, flag in (
        (config.vector_dim, "items", "--gin.FeatureSpec.items=False"),
        (config.segments, "ModelConfig.segments = True", "--gin.ModelConfig.segments=False"),
        (config.soft_dim, soft, "--gin.FeatureSpec.soft=False"),
    ):
        if on:
            raise UserError(
                f"the model has {setting}, which Hugging Face's T5 does not: an exported model "
                f"would write other lists. Train it with {flag}, or without all of these: "
                "--gin_file=gin_configs/hugging_face.gin"
            )


def config_files(config: ModelConfig) -> dict[str, Any]:
    """The JSON files that transformers reads besides the weights: file name -> values.

    The family is "umt5" if every layer has its own positions, else "t5".
    """
    family = "umt5" if config.positions_per_layer else "t5"
    tied = config.tie_embeddings
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    sizes = dataclasses.asdict(config)
    values = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": config.dropout,
        "torch_dtype": "float32",
        **tokens,
        **{key: sizes[ours] for key, ours in SIZES.items()},
        "tie_word_embeddings": tied,
    }
    if family == "t5":
        values["scale_decoder_outputs"] = tied
    else:  # version 5 always scales umT5's outputs, so `write_t5` multiplies the head
        values["tie_word_embeddings"] = True
    return {CONFIG: values, GENERATION: dict(tokens)}


def read_json(path: str) -> dict:
    """A JSON file's object; UserError if it is missing, damaged, or no object."""
    return files.read_object(path, "a T5 model in the Hugging Face layout", "copy it again.")
