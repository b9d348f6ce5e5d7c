"""`config.json` of T5 v1.1, Flan-T5, mT5 and umT5, in and out: what their models are, in our terms.

The weights are `hf.py`'s. Whatever of a configuration `Seq2Seq` does not compute is refused by
name, in both directions. Checked against transformers 5.23.
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
_ONLY = {  # what `Seq2Seq` computes; transformers' own default where the key is left out
    "layer_norm_epsilon": (1e-6, 1e-6),
    "pad_token_id": (0, 0),
    "eos_token_id": (1, 1),
    "decoder_start_token_id": (0, 0),
    "is_encoder_decoder": (True, True),
}


def is_folder(path: str | os.PathLike | None) -> bool:
    """Whether `path` is a folder with a config.json, as pretrained models come in."""
    return path is not None and os.path.isfile(os.path.join(path, CONFIG))


def read_config(folder: str) -> tuple[ModelConfig, str]:
    """The sizes a folder states, and its family: "t5", "mt5" or "umt5".

    `tie_embeddings` is what config.json alone says; `read_t5` corrects it by the tensors.

    Raises:
      UserError: config.json is missing or damaged, or describes no model that `Seq2Seq` computes;
        the key, what was found and what is supported are named.
    """
    place = os.path.join(folder, CONFIG)
    stated = read_json(place)
    return make_config(place, stated), family_of(place, stated)


def family_of(place: str, stated: Mapping[str, Any]) -> str:
    """One of FAMILIES, from the values of the config.json at `place`; UserError for any other."""
    named = stated.get("model_type")
    if named is None:  # Google's umT5 folders name the class alone
        classes = {name: family for family, name in FAMILIES.items()}
        named = next((classes[n] for n in stated.get("architectures") or () if n in classes), None)
    if named not in FAMILIES:
        raise UserError(
            f"{place}: expected model_type {' or '.join(FAMILIES)}, found {named!r}; choose a T5 "
            "v1.1, Flan-T5, mT5 or umT5 model."
        )
    return named


def make_config(place: str, stated: Mapping[str, Any]) -> ModelConfig:
    """`read_config` of values already read from `place`."""
    family = family_of(place, stated)
    gate = stated.get("feed_forward_proj", "relu" if family == "t5" else "gated-gelu")
    if gate != "gated-gelu":
        raise UserError(
            f"{place}: feed_forward_proj is {gate!r}; supported is 'gated-gelu', as in T5 v1.1, "
            "Flan-T5, mT5 and umT5 (the first T5 of 2019 has 'relu')."
        )
    for key, value in (("is_gated_act", True), ("dense_act_fn", "gelu_new")):
        if stated.get(key, value) != value:
            raise UserError(f"{place}: {key} is {stated[key]!r}; supported is {value!r}.")
    for key, (only, default) in _ONLY.items():
        given = default if stated.get(key) is None else stated[key]
        if given != only:
            raise UserError(f"{place}: {key} is {given!r}; supported is {only!r}.")
    sizes: dict[str, Any] = {}
    for key, ours in SIZES.items():
        found = stated.get(key, _DEFAULTS.get(key))
        if found is None and key == "num_decoder_layers":
            found = stated.get("num_layers")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise UserError(f"{place}: {key} is {found!r}; expected a number from 1 up.")
        sizes[ours] = found
    return ModelConfig(
        **sizes,
        dropout=float(stated.get("dropout_rate", 0.1)),
        tie_embeddings=bool(stated.get("tie_word_embeddings", True)),
        positions_per_layer=family == "umt5",
    )


def scales_outputs(stated: Mapping[str, Any], family: str, own_head: bool) -> bool:
    """Whether transformers multiplies the decoder's outputs by d_model**-0.5 before the head.

    T5 writes it down since version 5; before, and in umT5, it is `tie_word_embeddings`. mT5 has
    done so up to version 4 only, where a head of its own excluded it.
    """
    if "scale_decoder_outputs" in stated:
        return bool(stated["scale_decoder_outputs"])
    version = str(stated.get("transformers_version", "4")).split(".")[0]
    if family == "mt5" and (own_head or (version.isdecimal() and int(version) >= 5)):
        return False
    return bool(stated.get("tie_word_embeddings", True))


def check_exportable(config: ModelConfig) -> None:
    """Raises UserError naming the first setting that Hugging Face's T5 has no place for."""
    for on, setting, flag in (
        (config.vector_dim, "items", "--gin.FeatureSpec.items=False"),
        (config.segments, "ModelConfig.segments = True", "--gin.ModelConfig.segments=False"),
        (
            config.soft_dim,
            f"soft tokens of width {config.soft_dim}",
            "--gin.FeatureSpec.soft=False",
        ),
    ):
        if on:
            raise UserError(
                f"the model has {setting}, which Hugging Face's T5 does not: exported, it would "
                f"write other lists. Train it with {flag}, or with all of these off: "
                "--gin_file=gin_configs/hugging_face.gin"
            )


def config_files(config: ModelConfig) -> dict[str, Any]:
    """What transformers reads beside the weights, as JSON values by file name.

    The family is "umt5" where every layer has positions of its own, else "t5".
    """
    family = "umt5" if config.positions_per_layer else "t5"
    tied = config.tie_embeddings
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    sizes = dataclasses.asdict(config)
    written = {
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
        written["scale_decoder_outputs"] = tied
    else:  # version 5 scales umT5's outputs always; `write_t5` makes the head larger
        written["tie_word_embeddings"] = True
    return {CONFIG: written, GENERATION: dict(tokens)}


def read_json(path: str) -> dict:
    """A JSON file's object; UserError if it is missing, damaged, or no object."""
    found = files.read_json(path, "a T5 model in the Hugging Face layout", "copy it again.")
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}.")
    return found
