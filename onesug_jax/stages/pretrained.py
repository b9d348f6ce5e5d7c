"""Initial parameters for training: those of a trained stage, or of Hugging Face's T5."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import is_remote, require_files
from onesug_jax.pipeline import tables
from onesug_jax.pipeline.mirror import brought
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import read_result
from onesug_jax.stages import trained

if TYPE_CHECKING:
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.tasks.vocabulary import Vocabulary

SPIECE = "spiece.model"  # the SentencePiece model in a folder of a pretrained model
_SETTING = "pretrain.params_from"
_SHAPES = (  # fields of ModelConfig that must equal those of the folder
    "d_model",
    "num_heads",
    "head_dim",
    "d_ff",
    "encoder_layers",
    "decoder_layers",
    "relative_buckets",
    "relative_max_distance",
    "positions_per_layer",
)
_MODELS = {512: "small", 768: "base", 1024: "large", 2048: "xl"}  # gin_configs/models by d_model


def files(context: Context, setting: str, *names: str, sure: bool = False) -> tuple[str, ...]:
    """Files of the pretrained model in the folder of a setting; none if the setting is None, or,
    unless `sure`, if the folder has no config.json and so is a trained stage's.
    """
    folder = context.settings.get(setting)
    if folder is None or not (sure or os.path.isfile(os.path.join(folder, "config.json"))):
        return ()
    return tuple(os.path.join(os.path.abspath(folder), name) for name in names)


def parameters_from(setting: str, given: str) -> str:
    """The local folder of parameters for a setting; those of a stage in a bucket are pulled.

    Raises:
      UserError: there is no such folder; in a bucket, no such stage of a WORK_DIR.
    """
    folder = brought(given, tables.local(given))
    if not (tables.holding(folder) if is_remote(given) else os.path.isdir(folder)):
        raise UserError(
            f"{setting} = {given!r}: expected the folder of a trained stage, for pretrain also of "
            "a T5, found no such folder. In a bucket it is a stage's folder in a WORK_DIR "
            "(gs://BUCKET/WORK_DIR/pretrain); copy a T5 to this machine."
        )
    return folder


def check_fits(folder: str, config: ModelConfig, vocabulary: Vocabulary) -> None:
    """Checks that a folder's model has this size and these pieces; its weights are not read.

    Raises:
      UserError: a field differs, or the vocabulary is not the folder's.
    """
    from onesug_jax.model.hf_config import read_config

    theirs, _ = read_config(folder)
    for field in _SHAPES:
        found, expected = getattr(theirs, field), getattr(config, field)
        if found != expected:
            raise UserError(
                f"{_SETTING} = {folder!r}: its model has {field} {found}, and "
                f"ModelConfig.{field} is {expected}; {_fix(theirs, field)}"
            )
    path = os.path.join(folder, SPIECE)
    require_files(
        [path], "the pieces of the pretrained model", "copy it beside the model's config.json"
    )
    with open(path, "rb") as file:
        same = file.read() == vocabulary.model
    if not same or vocabulary.first_marker != theirs.vocab_size:
        raise UserError(
            f"{_SETTING} = {folder!r}: the vocabulary has other pieces than this model, whose rows "
            f"would stand for other tokens; run again with --gin.vocab.pretrained={folder}"
        )


def check_vocabulary(setting: str, folder: str, fingerprint: str) -> None:
    """Checks that a trained stage's folder, if it has a description, has this vocabulary.

    Raises:
      UserError: it has another one: the same rows would stand for other tokens.
    """
    path = os.path.join(folder, trained.MODEL_FILE)
    found = read_result(path)["vocabulary"] if os.path.isfile(path) else fingerprint
    if found != fingerprint:
        raise UserError(
            f"{setting} = {folder!r}: its vocabulary is {found}, and that of WORK_DIR is "
            f"{fingerprint}, so its rows would stand for other tokens; copy its vocab/ into a "
            "new WORK_DIR before training there"
        )


def _fix(theirs: ModelConfig, field: str) -> str:
    name = _MODELS.get(theirs.d_model)
    if name is None:
        return f"set --gin.ModelConfig.{field}={getattr(theirs, field)}"
    return f"choose its size: --gin.MODEL={'umt5_' * theirs.positions_per_layer}{name}"


def read(
    folder: str, config: ModelConfig, vocabulary: Vocabulary, init_fn: Callable, seed: int
) -> dict:
    """The parameters in a folder, with new table rows for our tokens after its own.

    Parameters that T5 lacks (`soft_projection`) are initialised as in training from scratch. Prints
    the sources.

    Raises:
      UserError: `model.hf.read_t5` raises it, or only one of the models ties its head to the table.
    """
    import jax

    from onesug_jax.model.hf import read_t5, with_rows
    from onesug_jax.train.mesh import unbox

    theirs, params, report = read_t5(folder)
    if theirs.tie_embeddings != config.tie_embeddings:
        raise UserError(
            f"{_SETTING} = {folder!r}: its model has tie_embeddings {theirs.tie_embeddings}, and "
            f"ModelConfig.tie_embeddings is {config.tie_embeddings}; set "
            f"--gin.ModelConfig.tie_embeddings={theirs.tie_embeddings}"
        )
    rows = vocabulary.size - theirs.vocab_size
    theirs, params = with_rows(theirs, params, vocabulary.size, pieces=vocabulary.pieces, seed=seed)

    def missing(key: jax.Array) -> dict:
        initial = unbox(init_fn(key))
        return {name: initial[name] for name in initial if name not in params}

    new = jax.jit(missing)(jax.random.key(seed))  # jit does not compute the unused ones
    print(f"from {folder}: {report}")
    print(f"new: {', '.join([f'{rows:,} rows of tokens', *new])}", flush=True)
    return {**params, **new}
