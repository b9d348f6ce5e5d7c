"""Exports and conversions: the model as a T5 folder of Hugging Face, a T5X checkpoint as such a
folder, the log as a TensorFlow Datasets dataset.
"""

from __future__ import annotations

import argparse
import os
import shutil

from onesug_jax.errors import UserError
from onesug_jax.files import require_files, write_json
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages.pretrained import SPIECE
from onesug_jax.stages.trained_model import TrainedModel

LAYOUT = "onesug.json"  # the format of a request; Hugging Face does not read it


def flags(parser: argparse.ArgumentParser) -> None:
    """The output."""
    parser.add_argument("--to", metavar="FOLDER", help="the folder to write, new or empty")


def convert_flags(parser: argparse.ArgumentParser) -> None:
    """The inputs and the output."""
    parser.add_argument("--checkpoint", metavar="FOLDER", help="T5X's checkpoint_STEP")
    parser.add_argument("--vocabulary", metavar="FILE", help="its SentencePiece model")
    parser.add_argument("--to", metavar="FOLDER", help="the folder to write, new or empty")


def tfds_flags(parser: argparse.ArgumentParser) -> None:
    """The output and its name."""
    parser.add_argument("--to", metavar="FOLDER", help="the data_dir argument of tfds.load")
    parser.add_argument("--name", default="default", help="onesug_log/NAME (default: default)")


def tfds(context: Context) -> None:
    """Writes the splits of WORK_DIR/log for `tfds.load("onesug_log/NAME", data_dir=FOLDER)`.

    Raises:
      UserError: no --to, no log, or a dataset of that name exists.
    """
    if not context.options.to:
        raise UserError("tfds needs a folder to write: --to FOLDER")
    from onesug_jax.tasks import tfds_log

    folder, name = context.options.to, context.options.name
    history = context.configured("FeatureSpec")().history
    rows = tfds_log.write_dataset(context.home.log, folder, name, history)
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    print(f'{counts} rows: tfds.load("{tfds_log.NAME}/{name}", data_dir="{folder}")', flush=True)


def export(context: Context) -> None:
    """Writes the model in use, its pieces and its tokenizer into the folder --to.

    Raises:
      UserError: no --to, a folder with files, or a model with parts that Hugging Face's T5 lacks.
    """
    from onesug_jax.evaluate.card import FILE as CARD
    from onesug_jax.model.hf import write_t5
    from onesug_jax.model.hf_config import check_exportable
    from onesug_jax.tasks.tokenizer_files import write_tokenizer

    folder, model = _new_folder("export", context.options.to), TrainedModel(context)
    check_exportable(model.config)
    write_t5(folder, model.config, model.parameters)
    write_tokenizer(folder, model.vocabulary)
    layout = {
        "stage": model.stage,
        "vocabulary": model.vocabulary.fingerprint,
        "features": model.stored["features"],
        "request": "<prefix>PREFIX<related1>Q<related2>Q<history1>H<profile1>V</s>",
    }
    write_json(os.path.join(folder, LAYOUT), layout)
    card = os.path.join(context.home.report, "dev", CARD)
    if os.path.exists(card):  # of the last evaluation
        shutil.copy(card, folder)
    print(
        f"{model.config.parameters():,} parameters and {model.config.vocab_size:,} tokens of "
        f"{model.stage}: {folder}"
    )


def convert(context: Context) -> None:
    """Converts a T5X checkpoint to a T5 folder of Hugging Face, from which `pretrain` can start.

    Raises:
      UserError: a flag is missing, --to contains files, or `model.t5x.read_t5x` raises it.
    """
    from onesug_jax.model.hf import write_t5
    from onesug_jax.model.t5x import read_t5x

    options = context.options
    folder = _new_folder("convert", options.to)
    if not options.checkpoint or not options.vocabulary:
        raise UserError("convert reads T5X's files: --checkpoint FOLDER --vocabulary FILE")
    require_files([options.vocabulary], "the SentencePiece model of the checkpoint", "name it")
    config, params = read_t5x(options.checkpoint)
    write_t5(folder, config, params)
    shutil.copy(options.vocabulary, os.path.join(folder, SPIECE))
    print(
        f"{config.parameters():,} parameters and {config.vocab_size:,} tokens: {folder}. Train "
        f"from it with --gin.vocab.pretrained={folder} --gin.PARAMS_FROM={folder}"
    )


def _new_folder(stage: str, folder: str | None) -> str:
    if not folder:
        raise UserError(f"{stage} needs a folder to write: --to FOLDER")
    if os.path.isdir(folder) and os.listdir(folder):
        raise UserError(f"--to {folder}: holds files already; give a new or an empty folder.")
    return folder
